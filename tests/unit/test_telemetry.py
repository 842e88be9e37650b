"""Log events keep their keys and values, lose their secrets, and stay quiet until somebody listens."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.telemetry import Event, configure_logging, get_logger, unpack_event

if TYPE_CHECKING:
    from collections.abc import Iterator

log = get_logger("orchestrator.test")


@pytest.fixture
def own_process() -> Iterator[None]:
    """Logging as it was: `configure_logging` changes it for the whole process."""
    root, ours = logging.getLogger(), logging.getLogger("orchestrator")
    handlers, level, own_level = root.handlers[:], root.level, ours.level
    root.handlers[:] = []  # basicConfig(force=True) closes what it replaces, and these are pytest's
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(own_level)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_reads_as_its_name_and_its_pairs(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("run.lost", run_id="run_1", tries=3)

    assert caplog.messages == ["run.lost run_id='run_1' tries=3"]
    assert caplog.records[0].name == "orchestrator.test"


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_every_level_is_the_standard_library_s(level: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(level.upper(), "orchestrator")

    getattr(log, level)("run.created", run_id="run_1")

    assert [record.levelname for record in caplog.records] == [level.upper()]


def test_a_level_that_is_off_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR", "orchestrator")

    log.debug("run.created")
    log.info("run.created")
    log.warning("run.created")
    caplog.set_level("CRITICAL", "orchestrator")
    log.error("run.lost")
    try:
        raise ValueError
    except ValueError:
        log.exception("run.lost")

    assert caplog.records == []


def test_bound_values_come_with_every_event_and_the_closer_ones_win(caplog: pytest.LogCaptureFixture) -> None:
    bound = log.bind(run_id="run_1", phase="creating").bind(phase="watching")

    bound.warning("run.stalled", age_s=60)
    bound.warning("run.stalled", phase="acting")
    log.warning("run.stalled")

    assert caplog.messages == [
        "run.stalled run_id='run_1' phase='watching' age_s=60",
        "run.stalled run_id='run_1' phase='acting'",
        "run.stalled",
    ]


def test_the_record_names_the_line_that_spoke(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("run.lost")
    try:
        raise ValueError
    except ValueError:
        log.exception("run.lost")

    assert {record.filename for record in caplog.records} == {"test_telemetry.py"}
    assert {record.funcName for record in caplog.records} == {"test_the_record_names_the_line_that_spoke"}


@pytest.mark.parametrize(
    "key", ["api_key", "Authorization", "arguments", "output", "outputs", "token", "Api-Key"]
)
def test_what_must_not_be_logged_is_struck_out_at_any_depth(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    log.bind(**{key: "sk-bound"}).warning("call.made", headers={key: "sk-nested"}, calls=[{key: "sk-listed"}])

    assert "sk-" not in caplog.text
    assert caplog.text.count("[redacted]") == 3


def test_keys_that_only_resemble_them_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("run.finished", total_tokens=7, output_bytes=9, items=(1, 2))

    assert caplog.messages == ["run.finished total_tokens=7 output_bytes=9 items=[1, 2]"]


def test_an_exception_brings_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("given")
    try:
        raise KeyError("handled")
    except KeyError:
        log.exception("tool.failed")
    log.error("tool.failed", exc_info=error)

    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [KeyError, ValueError]


@pytest.mark.usefixtures("own_process")
def test_json_lines_carry_keys_values_and_tracebacks() -> None:
    stream = io.StringIO()
    configure_logging(format="json", stream=stream)

    log.info("run.created", run_id="run_1", api_key="sk-1", steps={"a": [1]})
    try:
        raise ValueError("mine")
    except ValueError:
        log.exception("tool.failed", error=object)
    logging.getLogger("elsewhere").warning("of %s", "others")

    created, failed, others = lines_of(stream)
    assert created.pop("timestamp").endswith("Z")
    assert created == {
        "event": "run.created",
        "run_id": "run_1",
        "api_key": "[redacted]",
        "steps": {"a": [1]},
        "level": "info",
        "logger": "orchestrator.test",
    }
    assert failed["exception"].endswith("ValueError: mine")
    assert failed["error"] == "<class 'object'>"
    assert (others["event"], others["logger"]) == ("of others", "elsewhere")


@pytest.mark.usefixtures("own_process")
def test_console_lines_are_plain_without_a_terminal_and_show_no_local_variables() -> None:
    stream, password = io.StringIO(), "sk-local"
    configure_logging(stream=stream)

    try:
        raise ValueError(len(password))
    except ValueError:
        log.exception("tool.failed", call_id="call_1")

    text = stream.getvalue()
    assert "tool.failed" in text
    assert "call_id=call_1" in text
    assert "ValueError: 8" in text
    assert "\x1b[" not in text
    assert password not in text


@pytest.mark.usefixtures("own_process")
def test_the_level_is_for_our_own_events_and_the_last_configuration_counts() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(level="debug", format="json", stream=first)
    log.debug("shown")
    logging.getLogger("elsewhere").info("not shown")
    configure_logging(level="error", format="json", stream=second)
    log.warning("not shown")
    log.error("shown")

    assert [line["event"] for line in lines_of(first)] == ["shown"]
    assert [line["event"] for line in lines_of(second)] == ["shown"]


def test_an_application_s_own_structlog_formatter_gets_keys_and_values() -> None:
    import structlog

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[unpack_event, structlog.stdlib.add_log_level],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
    record = logging.LogRecord("orchestrator.x", logging.INFO, "", 0, Event(event="a", b=1), None, None)

    assert json.loads(formatter.format(record)) == {"event": "a", "b": 1, "level": "info"}


class Hostile(logging.Handler):
    """A handler whose file system is full, and that lets everybody know."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError(f"no space left for {record.name}")


@pytest.fixture
def hostile() -> Iterator[None]:
    handler = Hostile()
    log_of_tests = logging.getLogger("orchestrator.test")
    log_of_tests.addHandler(handler)
    yield
    log_of_tests.removeHandler(handler)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("level", ["warning", "error", "exception"])
def test_what_a_handler_raises_does_not_reach_the_caller_and_is_said_once(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(log, level)("run.lost", token="sk-1")

    said = capsys.readouterr().err
    assert said.startswith("--- Logging error ---\n")
    assert said.count("OSError: no space left") == 1
    assert said.endswith("Event: run.lost\n")
    assert "sk-1" not in said


@pytest.mark.usefixtures("hostile")
def test_an_application_that_wants_no_word_of_broken_logging_hears_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)

    log.warning("run.lost")

    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("closed", [False, True], ids=["missing", "closed"])
def test_broken_logging_without_a_standard_error_is_silent(
    closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)

    log.warning("run.lost")


DEFAULT = """
import sys
from orchestrator.telemetry import get_logger
log = get_logger("orchestrator.test")
log.info("quiet", run_id=1)
log.warning("heard", run_id=2)
print("structlog" in sys.modules)
"""


def test_without_configuration_warnings_are_heard_and_structlog_is_not_loaded() -> None:
    process = subprocess.run(
        [sys.executable, "-c", DEFAULT], capture_output=True, text=True, timeout=30, check=True
    )

    assert process.stderr == "heard run_id=2\n"
    assert process.stdout == "False\n"
