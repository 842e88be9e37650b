from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.server import app
from orchestrator.testing import running_server
from server.conformance import Conformance
from server.speaker import Speaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.applications import Starlette

SCRIPT = r"""
rules:
  - name: weather
    match: '(?i)weather in (?P<cities>.+)\?'
    steps:
      - call:
          - {tool: get_weather, for_each: '(?P<city>[A-Z]\w+)', arguments: {city: '{city}', unit: c}}
      - say:
          - 'It is '
          - {each: get_weather, text: '{city} {output.celsius}', join: ' and '}
  - name: rounds
    match: 'rounds'
    steps:
      - call: {tool: get_time, arguments: {zone: utc}}
      - call: {tool: get_weather, arguments: {city: Oslo, hour: '{get_time.hour}'}}
      - say: 'At {get_time.hour} it is {get_weather}.'
  - name: slow
    match: 'slow'
    steps:
      - say: 'one'
      - think_s: 600
      - say: 'two'
  - name: thinking
    match: 'think'
    steps:
      - think_s: 600
  - name: failing
    match: 'fail as (?P<how>\w+)'
    steps:
      - say: 'I try'
      - fail: {code: rate_limit_exceeded, message: 'too much, {how}'}
  - name: long
    match: 'long'
    piece_chars: 100
    steps:
      - say: 'LONG'
  - name: overrun
    match: 'overrun'
    steps:
      - say: 'and so'
      - overrun: true
  - name: invalid arguments
    match: 'invalid'
    steps:
      - call: {tool: get_weather, arguments_raw: '{"city": '}
  - name: stalling in a call
    match: 'stall'
    piece_s: 600
    steps:
      - call: {tool: get_weather, arguments: {city: 'Oslo, and then'}}
  - name: wordy call
    match: 'wordy'
    steps:
      - call: {tool: get_weather, arguments: {city: 'WORDS'}}
  - name: text before a call
    match: 'look it up'
    steps:
      - say: 'I look it up.'
      - call: {tool: get_weather, arguments: {city: Oslo}}
      - say: 'It is {get_weather}.'
  - name: failing at once
    match: 'crash'
    steps:
      - fail: {message: 'it crashed'}
  - name: paced
    match: 'paced'
    piece_chars: 4
    piece_s: 0.02
    steps:
      - say: 'word by word and piece by piece'
  - name: hello
    match: 'hello'
    steps:
      - say: 'Hello, how are you today, dear reader of streams?'
""".replace("LONG", "words " * 400).replace("WORDS", "words " * 400)


@pytest.fixture(scope="package", autouse=True)
def complaints() -> Iterator[list[str]]:
    """What any server in this process said that the specification does not allow."""
    found: list[str] = []
    create = app.create_app

    def create_watched(**options: Any) -> Starlette:
        made = create(**options)
        made.add_middleware(Conformance, complaints=found)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "create_app", create_watched)
        yield found


@pytest.fixture(autouse=True)
def _conforming(complaints: list[str]) -> Iterator[None]:
    """Every answer and every event of every test fits the specification."""
    yield
    said = complaints.copy()
    complaints.clear()
    assert not said


@pytest.fixture(scope="package")
def speaker() -> Iterator[Speaker]:
    """A client of a server with the rules above; shared, so a test makes its own threads."""
    with running_server(SCRIPT) as server:
        client = Speaker(server)
        with client.http:
            yield client
