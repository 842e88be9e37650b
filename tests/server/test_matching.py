"""Patterns of scripts: `re` decides what matches, and no text makes it take long."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.server.matching import Found, Pattern, PatternError, PatternTimeoutError
from orchestrator.testing import running_server
from server.speaker import Speaker

ENDLESS = [
    (r"(a+)+b", "a" * 60),
    (r"(?:a|a)*b", "a" * 60),
    (r"(?:a?){40}a{40}$", "a" * 40 + "c"),
    ("(?x)( a+ # )\n )+ b", "a" * 60),
    (r".*.*.*.*=x", "a" * 4000),
    (r"(?:[)]|[^)]+)+x", "a" * 60),
]


@pytest.mark.parametrize(("pattern", "text"), ENDLESS)
def test_a_search_without_end_is_given_up_after_a_second(pattern: str, text: str) -> None:
    began = time.monotonic()
    with pytest.raises(PatternTimeoutError, match="takes too long") as caught:
        Pattern.of(pattern).first(text)
    assert time.monotonic() - began < 10
    assert pattern in str(caught.value)
    assert Pattern.of(pattern).may_block


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i)weather in (?P<cities>.+)\?",
        r"(?P<city>[A-Z]\w+)",
        r"\d{4}-\d\d",
        r"[(*+?]{1,3}",
        r"(?:very )?cold",
    ],
)
def test_what_is_common_never_leaves_this_thread(pattern: str) -> None:
    assert not Pattern.of(pattern).may_block
    assert Pattern.of(pattern)._is_cheap("x" * 4000)


PIECES = st.sampled_from(
    ["a", "b", "ab", "a+", "(?P<x>a|b)", "b*", "(a+)+", "[ab]{1,2}", "a?", "^", "$", "(?:ab)*"]
)


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(PIECES, min_size=1, max_size=4), text=st.text("ab \ud83d\N{GRINNING FACE}", max_size=8)
)
def test_in_a_process_of_its_own_a_pattern_finds_the_same(pieces: list[str], text: str) -> None:
    try:
        compiled = re.compile("".join(pieces))
    except re.error:  # a group of one name twice
        with pytest.raises(PatternError):
            Pattern.of("".join(pieces))
        return
    pattern = Pattern.of("".join(pieces))
    expected = [Found(whole=one[0], groups=one.groupdict()) for one in compiled.finditer(text)]
    assert pattern._elsewhere(text, every=True) == pattern.every(text) == expected
    assert (
        pattern._elsewhere(text, every=False)[:1]
        == expected[:1]
        == [one for one in [pattern.first(text)] if one]
    )


def test_while_a_pattern_takes_its_time_the_server_serves_others() -> None:
    rules: list[dict[str, Any]] = [
        {"match": "(a+)+b", "steps": [{"say": "never"}]},
        {"match": "hello", "steps": [{"say": "Hello."}]},
    ]
    with running_server(rules) as server:
        speaker = Speaker(server)
        with speaker.http:
            path = speaker.run("a" * 60)
            looks = 0
            while (run := speaker.ok("GET", path))["status"] in ("queued", "in_progress"):
                looks += 1
    assert run["status"] == "failed"
    assert run["last_error"]["message"] == "The script's pattern `(a+)+b` takes too long on this text."
    assert looks > 10, "the loop was held up"


def test_what_is_no_pattern_is_said_so() -> None:
    for text in ("(", "a{99999999999}", "(?P<x>a)(?P<x>b)"):
        with pytest.raises(PatternError, match="is not a regular expression"):
            Pattern.of(text)
