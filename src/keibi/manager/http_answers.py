"""Answers of the REST API, encoded by msgspec and described in the OpenAPI document."""

from typing import Any

import msgspec
from starlette.responses import Response

from keibi.manager.http_errors import ERROR_SCHEMA

DEFINITIONS = "x-definitions"
"""Where `answers` leaves the schemas that its own refers to, until `collect_definitions` puts them in one place."""
_REFERENCE = "#/components/schemas/{name}"


def answer(value: object, status: int = 200) -> Response:
    """Return any dataclass, struct or JSON value as an answer."""
    return Response(msgspec.json.encode(value), status, media_type="application/json", headers={"Cache-Control": "no-store"})


def answers(type_: Any, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` for an endpoint that answers with `type_`."""
    (schema,), definitions = msgspec.json.schema_components([type_], ref_template=_REFERENCE)
    content = {"application/json": {"schema": schema}}
    return {status: {"description": "As asked for", "content": content, DEFINITIONS: definitions}}


def collect_definitions(document: dict[str, Any]) -> None:
    """Move the definitions that `answers` left in an OpenAPI document to its components."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for operations in document.get("paths", {}).values():
        for operation in operations.values():
            for response in operation.get("responses", {}).values():
                schemas.update(response.pop(DEFINITIONS, {}))


def describe_errors(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document what the answers that are errors look like: ours, and not the framework's own."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = dict(ERROR_SCHEMA)
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(name="Error")}}}
    for operations in document.get("paths", {}).values():
        for operation in operations.values():
            responses = operation.setdefault("responses", {})
            responses.pop("422", None)
            responses["default"] = {"description": "An error, and what to do about it", "content": content}
