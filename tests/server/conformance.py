"""The published specification as a judge: of every answer and every event that a server of these tests sends.

Owns the lookup of schemas and `Conformance`, an ASGI layer that sees what leaves the server, whoever asked
for it. Knows no client.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SPEC = Path(__file__).parent.parent / "spec" / "threads-openapi.json"
ERROR = "/components/schemas/ErrorResponse"
_PREFIX = re.compile(r"^/(v1|openai/v1|openai|api/projects/[^/]+)(?=/|$)")


@cache
def document() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(SPEC.read_text(encoding="utf-8"))
    # It lets an assistant have 128 tools and its runs, which carry the assistant's, only 20.
    whole["components"]["schemas"]["RunObject"]["properties"]["tools"]["maxItems"] = 128
    return whole


@cache
def _registry() -> Registry[Any]:
    registry: Registry[Any] = Registry().with_resource("spec", DRAFT202012.create_resource(document()))
    return registry


@cache
def _validator(pointer: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"spec#{pointer}"}, registry=_registry())


@cache
def _answers() -> list[tuple[str, re.Pattern[str], str]]:
    paths = document()["paths"]
    # Literal paths before those with ids, as a router would have it.
    return [
        (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), schema["$ref"].lstrip("#"))
        for path in sorted(paths, key=lambda path: path.count("{"))
        for method, operation in paths[path].items()
        for schema in [operation["responses"]["200"]["content"]["application/json"]["schema"]]
    ]


@cache
def _events() -> dict[str, str]:
    """Where the schema of each event's payload is."""
    schemas = document()["components"]["schemas"]
    found = {"error": schemas["ErrorEvent"]["properties"]["data"]}
    for family in ("ThreadStreamEvent", "RunStreamEvent", "RunStepStreamEvent", "MessageStreamEvent"):
        for one in schemas[family]["oneOf"]:
            (name,) = one["properties"]["event"]["enum"]
            found[name] = one["properties"]["data"]
    return {name: schema["$ref"].lstrip("#") for name, schema in found.items()}


def answer_schema(method: str, path: str) -> str:
    """Return where the schema of an operation's answer is; `path` begins behind the prefix."""
    for verb, pattern, pointer in _answers():
        if verb == method and pattern.fullmatch(path):
            return pointer
    raise AssertionError(f"the specification has no {method} {path}")


def check(payload: Any, pointer: str) -> None:
    """Raise `AssertionError` when a payload does not fit a schema of the specification."""
    errors = [f"{error.json_path}: {error.message}" for error in _validator(pointer).iter_errors(payload)]
    assert not errors, (errors, payload)


def body_schema(template: str) -> dict[str, Any]:
    """Return the schema of the body that is posted to a path of the specification."""
    content = document()["paths"][template]["post"]["requestBody"]["content"]
    schema: dict[str, Any] = document()["components"]["schemas"][
        content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    ]
    return schema


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Say whether a value fits a schema of the specification."""
    return bool(Draft202012Validator({**schema, "components": document()["components"]}).is_valid(value))


def check_event(name: str, data: str) -> Any:
    """Check an event as it stands on the wire; return its payload."""
    if name == "done":
        assert data == "[DONE]", data
        return data
    assert name in _events(), f"no event is called {name!r}"
    payload = json.loads(data)
    check(payload, _events()[name])
    return payload


class Conformance:
    """Checks what an application answers; what does not fit becomes a complaint, and is sent all the same."""

    def __init__(self, app: ASGIApp, *, complaints: list[str]) -> None:
        self._app = app
        self._complaints = complaints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")))

        async def pass_on(message: Message) -> None:
            try:
                answer.take(message)
            except Exception as error:  # noqa: BLE001 - whatever is odd about it is told to the test
                self._complaints.append(f"{scope['method']} {scope['path']}: {error!r}")
            await send(message)

        await self._app(scope, receive, pass_on)


class _Answer:
    def __init__(self, method: str, path: str) -> None:
        self._method = method
        self._path = path
        self._status = 0
        self._streams = False
        self._body = b""

    def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._check_head({name.decode(): value.decode() for name, value in message["headers"]})
            return
        self._body += message.get("body", b"")
        if self._streams:
            *events, self._body = self._body.split(b"\n\n")
            for event in events:
                self._check_event(event.decode())
            assert message.get("more_body") or not self._body, "a stream was cut off inside an event"
        elif not message.get("more_body"):
            self._check_body()

    def _check_head(self, headers: dict[str, str]) -> None:
        assert headers["x-request-id"].startswith("req_")
        assert int(headers["openai-poll-after-ms"]) > 0
        assert not [name for name in headers if name.startswith("access-control")]
        kind = headers["content-type"].partition(";")[0]
        self._streams = kind == "text/event-stream"
        assert self._streams or kind == "application/json", kind

    def _check_event(self, event: str) -> None:
        lines = event.split("\n")
        assert len(lines) == 2, f"an event is one line of its name and one of data: {event!r}"
        name, data = (line.partition(": ") for line in lines)
        assert (name[0], data[0]) == ("event", "data"), event
        check_event(name[2], data[2])

    def _check_body(self) -> None:
        payload = json.loads(self._body)
        if self._status >= 400:
            check(payload, ERROR)
            assert payload.keys() == {"error"}
            assert payload["error"].keys() == {"message", "type", "param", "code"}
        elif self._path != "/healthz":
            prefix = _PREFIX.match(self._path)
            assert prefix is not None, self._path
            check(payload, answer_schema(self._method, self._path[prefix.end() :]))
