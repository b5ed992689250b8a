"""The web application: agents, REST and console in one."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Mount

from keibi.errors import KeibiError
from keibi.manager.access.administration_api import keys_router, roles_router, users_router
from keibi.manager.access.api import router as auth_router
from keibi.manager.agents.api import commands_router, tokens_router
from keibi.manager.audit.api import router as audit_router
from keibi.manager.composition import Manager
from keibi.manager.computers.api import alarms_router, groups_router, overview_router
from keibi.manager.computers.api import router as computers_router
from keibi.manager.console.routes import build_routes
from keibi.manager.events.api import router as events_router
from keibi.manager.http_answers import answer, collect_definitions, describe_errors
from keibi.manager.http_errors import http_exception, invalid_request, keibi_error, unexpected
from keibi.manager.http_guard import RequestGuard
from keibi.manager.loop_lag import LoopLag
from keibi.manager.malware.api import quarantine_router
from keibi.manager.malware.api import router as malware_router
from keibi.manager.patterns.api import IMPORT_PATH
from keibi.manager.patterns.api import router as patterns_router
from keibi.manager.patterns.model import MAX_UPLOAD_BYTES
from keibi.manager.policies.api import router as policies_router
from keibi.manager.rules.api import router as rules_router
from keibi.manager.software.api import computers_router as software_computers_router
from keibi.manager.software.api import router as software_router
from keibi.manager.tenants.api import router as tenants_router

API_ROUTERS = (
    auth_router,
    tenants_router,
    users_router,
    roles_router,
    keys_router,
    audit_router,
    computers_router,
    groups_router,
    alarms_router,
    overview_router,
    tokens_router,
    commands_router,
    policies_router,
    rules_router,
    patterns_router,
    events_router,
    software_router,
    software_computers_router,
    malware_router,
    quarantine_router,
)
"""Everything under /api/v1. A feature's API is a line here."""

LARGE_UPLOADS = (IMPORT_PATH, "/content/import")
"""Addresses that take whole pattern files: of the API, and of the console."""
WAKE_BATCH = 100
WAKE_PAUSE_SECONDS = 0.2
"""A change that reaches thousands of agents wakes so many at a time."""
RETENTION_SECONDS = 3600.0
END_SECONDS = 10.0
"""How long the end waits for background work that has begun."""

logger = logging.getLogger("keibi.manager")

T = TypeVar("T")


def make_application(manager: Manager) -> FastAPI:
    """Return the application of a manager; its lifespan runs the background tasks."""
    lag = LoopLag()
    app = FastAPI(
        title="Keibi",
        version="1",
        description="Everything that the console does. Sign in, or send an API key: `Authorization: Bearer kb_…`.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lambda _app: _running(manager, lag),
        exception_handlers={
            KeibiError: keibi_error,
            RequestValidationError: invalid_request,
            HTTPException: http_exception,
            Exception: unexpected,
        },
        separate_input_output_schemas=False,
    )
    app.state.services = manager.services
    app.add_middleware(RequestGuard, larger=dict.fromkeys(LARGE_UPLOADS, MAX_UPLOAD_BYTES))
    app.router.routes.append(Mount("/agent/v1", routes=manager.agent_routes.routes()))
    for router in API_ROUTERS:
        app.include_router(router)

    async def health() -> Response:
        """Say that the manager answers, and how busy it is; for load balancers and `keibi up`."""
        lags = {f"loop_lag_p{percent}_milliseconds": lag.percentile_milliseconds(percent) for percent in (50, 99)}
        return answer({"status": "ok", **lags})

    app.add_api_route("/api/v1/health", health, methods=["GET"], include_in_schema=False)
    app.router.routes.extend(build_routes(manager.services))
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        document = describe()
        if is_new:
            collect_definitions(document)
            describe_errors(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _running(manager: Manager, lag: LoopLag) -> AsyncIterator[None]:
    manager.wake_ups.attach(asyncio.get_running_loop())
    manager.signals.start()
    await manager.services.ingest.start()
    # The first look only remembers: agents that were due before the restart come by themselves.
    await run_in_threadpool(manager.policy_watch.look)
    retention = manager.services.events.retention
    tasks = [
        asyncio.create_task(lag.measure(), name="loop-lag"),
        asyncio.create_task(_every(1.0, manager.heartbeats.flush), name="heartbeats"),
        asyncio.create_task(_watch_policies(manager), name="policy-watch"),
        asyncio.create_task(_every(10.0, manager.services.commands.expire), name="commands"),
        asyncio.create_task(_every(300.0, manager.revocations.load), name="revocations"),
        asyncio.create_task(_every(600.0, manager.uploads.expire), name="uploads"),
        asyncio.create_task(_every(RETENTION_SECONDS, lambda: retention.apply_retention(time.time())), name="retention"),
    ]
    try:
        yield
    finally:
        manager.wake_ups.release_all()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await manager.services.ingest.stop()
        await run_in_threadpool(manager.heartbeats.flush)


async def _every(seconds: float, work: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await guarded(work)


async def _watch_policies(manager: Manager) -> None:
    while True:
        await asyncio.sleep(1.0)
        due = await guarded(manager.policy_watch.look) or []
        for start in range(0, len(due), WAKE_BATCH):
            manager.wake_ups.wake(due[start : start + WAKE_BATCH])
            await asyncio.sleep(WAKE_PAUSE_SECONDS if len(due) > WAKE_BATCH else 0)


async def guarded(work: Callable[[], T]) -> T | None:
    """Do background work; what goes wrong is logged and tried again next time, since the task must not end.

    Who cancels it gets it when the work has ended: its thread goes on, and the database must not be closed under it.
    """
    working = asyncio.ensure_future(run_in_threadpool(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working], timeout=END_SECONDS)
        raise
    except KeibiError as error:
        logger.warning("background work has to wait: %s", error)
    except Exception:
        logger.exception("a fault in background work")
    return None
