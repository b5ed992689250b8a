"""Errors as HTTP answers: one shape, `{"error": {"code", "message", "where", "hint"}}`, for REST and agents alike.

The status follows from the family. Within InputError, codes ending in `_not_found` are 404, and `changed_meanwhile`, codes
ending in `_exists` or `_conflict`, and `conflict` are 409.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from keibi.errors import AccessError, InputError, KeibiError, RefusedError, TryLaterError
from keibi.manager.access.model import NotSignedInError

logger = logging.getLogger("keibi.http")

ERROR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "title": "Error",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "where", "hint"],
            "properties": {
                "code": {"type": "string", "description": "stable, for programs"},
                "message": {"type": "string", "description": "what is wrong, with the value"},
                "where": {"type": "string", "description": "in which field, file or object; may be empty"},
                "hint": {"type": "string", "description": "what to do; may be empty"},
                "problems": {
                    "type": "array",
                    "items": {"type": "object"},
                    "description": "all that is wrong, where it is more than one thing",
                },
            },
        }
    },
}
"""What every answer with a status of 400 and more holds, as OpenAPI describes it."""

_CONFLICTS = ("_exists", "_conflict")


def status_of(error: KeibiError) -> int:
    """Return the HTTP status that an error is answered with."""
    match error:
        case NotSignedInError():
            return 401
        case AccessError():
            return 403
        case TryLaterError():
            return 429 if error.code == "locked_out" else 503
        case RefusedError():
            return 413 if error.code == "body_too_large" else 403 if error.code in ("csrf_token", "foreign_origin") else 400
        case InputError():
            if error.code.endswith("_not_found"):
                return 404
            if error.code in ("changed_meanwhile", "conflict") or error.code.endswith(_CONFLICTS):
                return 409
            return 400
    return 500


def error_response(error: KeibiError, extra: Mapping[str, Any] | None = None) -> Response:
    """Return the answer for an error of ours."""
    headers = {}
    if isinstance(error, TryLaterError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, NotSignedInError):
        headers["WWW-Authenticate"] = "Bearer"
    return plain_error(status_of(error), error.code, error.message, error.hint, where=error.where, headers=headers, extra=extra)


def plain_error(
    status: int,
    code: str,
    message: str,
    hint: str = "",
    *,
    where: str = "",
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """Return an error answer."""
    body = {"error": {"code": code, "message": message, "where": where, "hint": hint, **(extra or {})}}
    return Response(msgspec.json.encode(body), status, dict(headers or {}), "application/json")


async def keibi_error(_request: Request, error: Exception) -> Response:
    """Answer an error of the four families."""
    if not isinstance(error, KeibiError):
        raise error
    if isinstance(error, RefusedError):
        logger.warning("refused: %s", error)
    problems = getattr(error, "problems", None)
    if problems:
        return error_response(error, {"problems": [msgspec.to_builtins(problem) for problem in problems]})
    return error_response(error)


async def invalid_request(_request: Request, error: Exception) -> Response:
    """Answer a body or parameter that does not fit the API's description."""
    if not isinstance(error, RequestValidationError):
        raise error
    problems = [
        {"where": ".".join(str(part) for part in problem["loc"]), "message": problem["msg"]} for problem in error.errors()[:20]
    ]
    first = problems[0] if problems else {"where": "", "message": "it does not fit"}
    return plain_error(
        422, "request_invalid", first["message"], "see /api/v1/openapi.json", where=first["where"], extra={"problems": problems}
    )


async def http_exception(request: Request, error: Exception) -> Response:
    """Answer what the framework itself refuses: an unknown path, a wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    code, message = {
        404: ("path_unknown", f"there is nothing at {request.url.path[:200]}"),
        405: ("method_unknown", f"{request.method} is not possible at {request.url.path[:200]}"),
    }.get(error.status_code, (f"http_{error.status_code}", str(error.detail)))
    return plain_error(error.status_code, code, message, headers=error.headers)


async def unexpected(request: Request, error: Exception) -> Response:
    """Answer a fault of ours: the caller learns that it is one, the log learns which."""
    logger.error("a fault at %s %s", request.method, request.url.path, exc_info=error)
    return plain_error(500, "internal", "the manager met a fault of its own", "see the manager's log")
