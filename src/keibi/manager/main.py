"""The manager's program: `python -m keibi.manager.main --config FILE` or `--state DIRECTORY`."""

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import os
import pathlib
import signal
import socket
import sys
from typing import Any

import uvloop
from fastapi import FastAPI
from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from keibi.errors import InputError, KeibiError, TryLaterError
from keibi.manager.access.service import AccessService
from keibi.manager.application import make_application
from keibi.manager.audit.service import AuditService
from keibi.manager.certificates import ServerCertificate, ensure_certificates
from keibi.manager.composition import Manager, make_manager, prepare_directory
from keibi.manager.config import ManagerConfig, load_config
from keibi.manager.database import Database
from keibi.manager.keys import SecretBox, load_or_make_key
from keibi.manager.services import Services

__all__ = ["Services", "build_app", "main", "run"]

IDLE_CONNECTION_MILLISECONDS = 90_000
"""Longer than an agent's long-poll and its pause between two of them."""
MAX_REQUESTS = 100_000
"""Requests at once: nearly all of them are long-polls of agents."""
BACKLOG = 4096

logger = logging.getLogger("keibi.manager")


def build_app(config: ManagerConfig) -> FastAPI:
    """Return the application with everything behind it running; its lifespan ends the event store's process too.

    Raises:
        KeibiError: something cannot be prepared, and why.
    """
    manager = make_manager(config)
    app = make_application(manager)
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def until_closed(served: Any) -> Any:
        async with inner(served) as state:
            yield state
        await asyncio.to_thread(manager.close)

    app.router.lifespan_context = until_closed
    return app


def run(config: ManagerConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        KeibiError: something cannot be prepared, and why.
    """
    # What is written from here on (the database too) is for the manager alone.
    os.umask(0o077)
    _check_port(config.address, config.port)
    prepare_directory(config.state_directory)
    certificate = _certificate(config)
    manager = make_manager(config)
    _tune_collector()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, certificate, manager))
    finally:
        manager.close()


def _tune_collector() -> None:
    """Let the collector leave alone what stays, and look less often at what comes and goes.

    A decoded batch is tens of thousands of objects without a cycle; with the default threshold the collector walks them again
    and again, which made half of the time to decode one (7.5 against 3.2 microseconds an event).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)


async def _serve(config: ManagerConfig, certificate: ServerCertificate, manager: Manager) -> None:
    server = Server(
        make_application(manager),
        address=config.address,
        port=config.port,
        interface=Interfaces.ASGI,
        backlog=BACKLOG,
        backpressure=MAX_REQUESTS,
        http1_settings=HTTP1Settings(header_read_timeout=IDLE_CONNECTION_MILLISECONDS),
        websockets=False,
        log_enabled=False,
        ssl_cert=pathlib.Path(certificate.certificate_file),
        ssl_key=pathlib.Path(certificate.key_file),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    logger.info("serving at https://%s:%d", config.address, config.port)
    await server.serve()


def _certificate(config: ManagerConfig) -> ServerCertificate:
    own = ensure_certificates(config.path("tls"), config.host_names)
    if not config.certificate_file:
        return own
    for path in (config.certificate_file, config.key_file):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise InputError("certificate_unreadable", f"cannot read: {error.strerror}", where=path) from error
    return ServerCertificate(own.ca_file, config.certificate_file, config.key_file, own.ends_at)


def _check_port(address: str, port: int) -> None:
    """Say in plain words why the port cannot be had, before anything is started."""
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except socket.gaierror as error:
        raise InputError("address_unknown", f"{address!r} is no address of this computer: {error.strerror}") from error
    except OSError as error:
        where = f"{address}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise TryLaterError(
                "port_busy",
                f"another program listens at port {port}",
                where=where,
                hint="is the manager running already? else set another port in the configuration",
            ) from error
        hint = "ports below 1024 need CAP_NET_BIND_SERVICE" if error.errno == errno.EACCES else ""
        raise InputError("address_unusable", f"cannot listen there: {error.strerror}", where=where, hint=hint) from error


def main(arguments: list[str] | None = None) -> int:
    """Run the manager's command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="keibi-manager", description="Keibi's manager: policies, events and the console")
    parser.add_argument("--config", default="", metavar="FILE", help="TOML file with the settings; all have defaults")
    parser.add_argument("--state", default="", metavar="DIRECTORY", help="directory of everything that is kept")
    parser.add_argument("--port", type=int, default=0, help="listen at this port instead of the configured one")
    parser.add_argument("--check", action="store_true", help="check the configuration and end")
    parser.add_argument(
        "--reset-password", default="", metavar="NAME", help="give a user the password on standard input, unlock them, and end"
    )
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, state_directory=options.state, port=options.port)
        _set_up_log(config.log_level)
        if options.check:
            print("the configuration is good")
        elif options.reset_password:
            reset_password(config, options.reset_password, sys.stdin.readline().rstrip("\n"))
        else:
            run(config)
    except KeibiError as error:
        print(f"keibi-manager: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def reset_password(config: ManagerConfig, name: str, password: str) -> None:
    """Give a user another password, for whoever has root on the manager's own computer.

    Raises:
        KeibiError: no such user, a weak password, or the database cannot be used.
    """
    database = Database(config.url)
    try:
        box = SecretBox(load_or_make_key(config.path("keys", "secrets.key")))
        AccessService(database, AuditService(database), box).set_password_by_name(name, password)
    finally:
        database.dispose()


def _set_up_log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
