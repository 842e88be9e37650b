"""schemathesis asks for everything the specification describes, and some of what it does not: no 500.

The published specification is the server's own description; there is no other. Every case is sent twice, as
it was generated and to objects that exist. That refusals come in the envelope is `conftest`'s business.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from orchestrator.testing import running_server
from server.conformance import document
from server.speaker import WEATHER, Speaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemathesis import Case, CheckFunction

EXAMPLES = 300 if os.environ.get("ORCHESTRATOR_LONG") else 8
SCRIPT = "rules: [{match: call, steps: [{call: {tool: get_weather}}, {say: done}]}]"

pytestmark = pytest.mark.alone  # its operations share one id: of two processes, each would run a few

schema = schemathesis.openapi.from_dict(document())


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A server with one object of each kind."""

    speaker: Speaker
    ids: dict[str, str]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with running_server(SCRIPT) as server:
        speaker = Speaker(server)
        with speaker.http:
            path, _ = speaker.waiting("call", WEATHER)
            _, _, thread_id, _, run_id = path.split("/")
            (message,) = speaker.ok("GET", f"/threads/{thread_id}/messages")["data"]
            (step,) = speaker.ok("GET", f"{path}/steps")["data"]
            ids = {
                "assistant_id": step["assistant_id"],
                "thread_id": thread_id,
                "run_id": run_id,
                "message_id": message["id"],
                "step_id": step["id"],
            }
            yield World(speaker=speaker, ids=ids)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_a_server_error_and_every_answer_fits(case: Case[Any], world: World) -> None:
    _send(case, world)
    known: Any = {name: world.ids[name] for name in case.path_parameters}
    if known:
        case.path_parameters = known
        _send(case, world)


def _send(case: Case[Any], world: World) -> None:
    server = world.speaker.server
    response = case.call(
        base_url=server.base_url,
        headers={"openai-beta": "assistants=v2", "authorization": f"Bearer {server.api_key}"},
        timeout=20,
    )
    streams = response.headers["content-type"][0].startswith("text/event-stream")
    checks: list[CheckFunction] = [not_a_server_error]
    if response.status_code == 200 and not streams:
        checks += [content_type_conformance, response_schema_conformance]
    case.validate_response(response, checks=checks)
