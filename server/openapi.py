"""The OpenAPI 3.1 document of the JSON API, made of its operations (`operations`), for people and for tools.

``GET /api/v1/openapi.json`` gives it to anybody who has a key.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Final

from mailboat.protocol.errors import PROBLEM_MEDIA_TYPE, Code
from mailboat.server.operations import JSON, Operation
from mailboat.server.parameters import Parameter
from mailboat.server.problems import VERSION
from mailboat.server.shapes import ID, TEXT, Shape, made_of, one_of

OPENAPI: Final = "3.1.0"

_SHARED: Final = {
    Code.BAD_REQUEST.status: "A parameter or the body is wrong; `detail` names it",
    Code.UNAUTHORISED.status: "A valid key is needed",
    Code.FORBIDDEN.status: "This key may not ask that",
    Code.TOO_MANY_REQUESTS.status: "The key asks too often: wait as long as `Retry-After` says",
    Code.UNAVAILABLE.status: "The answer takes too long, or the storage fails: try again, or ask about less",
}
_OF_CHANGES: Final = {Code.STORAGE_FULL.status: "The server's disk is full: nothing was changed"}
_OTHERS: Final = {
    Code.NOT_FOUND.status: "There is none",
    Code.CONFLICT.status: "It is in another state",
    Code.TOO_LARGE.status: "The body is too large",
    Code.UNSUPPORTED_MEDIA_TYPE.status: "The body is not JSON",
}

_PROBLEM: Final = made_of(
    {"type": TEXT, "title": TEXT, "status": {"type": "integer"}, "code": one_of(*(code.code for code in Code))},
    {"detail": TEXT},
)


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document of these operations."""
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "mailboat",
            "version": VERSION,
            "description": "What a mailboat server knows. Times are Unix seconds, durations seconds, days in UTC. "
            "`next` of a page is the `cursor` of the one after it, null at the end.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key as `mailboat keys create` prints it"}
            },
            "schemas": {"Problem": _PROBLEM},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    text = inspect.cleandoc(operation.handler.__doc__ or "")
    made: dict[str, Any] = {
        "operationId": operation.name,
        "summary": " ".join(text.partition("\n\n")[0].split()),
        "description": text,
        "x-role": operation.role.value,
        "parameters": [*_in_path(operation.path), *map(_in_query, operation.parameters)],
        "responses": {str(operation.status): _answer(operation.answer), **_refusals(operation)},
    }
    if operation.body is not None:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": operation.body}}}
    return made


def _in_query(parameter: Parameter) -> dict[str, Any]:
    return {"name": parameter.name, "in": "query", "description": parameter.about, "schema": parameter.shape}


def _in_path(path: str) -> list[dict[str, Any]]:
    names = [step[1:-1] for step in path.split("/") if step.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": ID if name == "id" else TEXT} for name in names]


def _answer(answer: Shape | str | None) -> dict[str, Any]:
    if answer is None:
        return {"description": "Done"}
    if isinstance(answer, str):
        return {"description": "The answer", "content": {answer: {}}}
    return {"description": "The answer", "content": {JSON: {"schema": answer}}}


def _refusals(operation: Operation) -> dict[str, Any]:
    texts = {**_SHARED, **{status: _OTHERS[status] for status in operation.refusals}}
    if operation.method != "GET":
        texts |= _OF_CHANGES
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        str(status): {"description": text, "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}}}
        for status, text in sorted(texts.items())
    }
