"""Log events: a stable name with keys and values, secrets struck out, handed to the standard library.

It owns the loggers every module uses and the one handler that our own processes (CLI, server) install. It
refuses to decide for an application: as a library the package adds no handler and sets no level, so that
warnings reach standard error by `logging.lastResort` and everything else stays quiet until asked for.

Emitting needs no structlog. Importing it takes 0.15 s, and the first warning often comes from the actors'
loop thread, where that would delay every mailbox. An event travels as the message of a standard log record;
structlog renders it, in `configure_logging` or in an application that has configured structlog for itself:
its `ProcessorFormatter` gets keys and values with `unpack_event` in `foreign_pre_chain`. There is one path
and one gate, the level of the standard logger `orchestrator`, whoever renders.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Self, TextIO

    from structlog.typing import Processor

__all__ = ["Event", "Logger", "configure_logging", "get_logger", "unpack_event"]

_ROOT = "orchestrator"
_STRUCK_OUT = "[redacted]"
_PLAIN = frozenset({str, int, float, bool})
_SECRET_KEYS = frozenset({"api_key", "authorization", "arguments", "output", "outputs", "token"})


class Event(dict[str, Any]):
    """The message of a log record: `event` names what happened, the other keys describe it.

    A plain `logging.Formatter` shows it as `run.created run_id='run_1'`.
    """

    def __str__(self) -> str:
        pairs = (f"{key}={value!r}" for key, value in self.items() if key != "event")
        return " ".join((str(self["event"]), *pairs))


class Logger:
    """Says what happened in one module; made by `get_logger`.

    Every method may be called from any thread, never raises, never blocks on anything but the application's
    own handlers, and costs well under a microsecond when its level is off. What a handler raises is reported
    on standard error, unless `logging.raiseExceptions` is off. Values under the keys `api_key`,
    `authorization`, `arguments`, `output`, `outputs` and `token` are struck out, also inside nested
    mappings and lists; text inside other values is not searched.
    """

    __slots__ = ("_context", "_stdlib")

    def __init__(self, name: str, context: Mapping[str, object] | None = None) -> None:
        self._stdlib = logging.getLogger(name)
        self._context = _redacted(context or {})

    def bind(self, **values: object) -> Self:
        """Return a logger that adds these keys and values to each of its events."""
        return type(self)(self._stdlib.name, self._context | values)

    def debug(self, event: str, /, **values: object) -> None:
        """Report a detail that helps to follow the work."""
        if self._stdlib.isEnabledFor(logging.DEBUG):
            self._emit(logging.DEBUG, event, values)

    def info(self, event: str, /, **values: object) -> None:
        """Report a step that went as it should."""
        if self._stdlib.isEnabledFor(logging.INFO):
            self._emit(logging.INFO, event, values)

    def warning(self, event: str, /, **values: object) -> None:
        """Report something that went wrong and was dealt with."""
        if self._stdlib.isEnabledFor(logging.WARNING):
            self._emit(logging.WARNING, event, values)

    def error(self, event: str, /, *, exc_info: BaseException | bool = False, **values: object) -> None:
        """Report something that went wrong and was not dealt with.

        Args:
            event: The event's name, such as `"run.lost"`.
            exc_info: The exception whose traceback belongs to it, or True for the one being handled.
            **values: What describes it.
        """
        if self._stdlib.isEnabledFor(logging.ERROR):
            error = sys.exception() if exc_info is True else exc_info or None
            self._emit(logging.ERROR, event, values, error)

    def exception(self, event: str, /, **values: object) -> None:
        """Report an error with the traceback of the exception being handled."""
        if self._stdlib.isEnabledFor(logging.ERROR):
            self._emit(logging.ERROR, event, values, sys.exception())

    def _emit(
        self, level: int, event: str, values: dict[str, object], error: BaseException | None = None
    ) -> None:
        try:
            message = Event(self._context | _redacted(values), event=event)
            # The record names the caller of info() or warning(). `Logger.log` would search all frames for it.
            caller = sys._getframe(2)  # noqa: SLF001 - public in all but its name
            code = caller.f_code
            record = self._stdlib.makeRecord(
                self._stdlib.name,
                level,
                code.co_filename,
                caller.f_lineno,
                message,
                (),
                _exc_info(error),
                code.co_name,
            )
            self._stdlib.handle(record)
        except Exception:  # noqa: BLE001 - the application's handlers must not decide what becomes of a run
            _complain(event)


def get_logger(name: str) -> Logger:
    """Return the logger of a module; pass `__name__`."""
    return Logger(name)


def _complain(event: str) -> None:
    """Say on standard error that the exception being handled kept an event from being logged."""
    if logging.raiseExceptions:
        with suppress(Exception):  # standard error may be closed, full or missing
            sys.stderr.write(f"--- Logging error ---\n{traceback.format_exc()}Event: {event}\n")


def _exc_info(
    error: BaseException | None,
) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    return None if error is None else (type(error), error, error.__traceback__)


def _redacted(values: Mapping[str, object]) -> dict[str, object]:
    return {key: _STRUCK_OUT if _is_secret(key) else _cleaned(value) for key, value in values.items()}


@lru_cache(maxsize=1024)
def _is_secret(key: object) -> bool:
    return str(key).lower().replace("-", "_") in _SECRET_KEYS


def _cleaned(value: object) -> object:
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return _redacted(value)
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value


def unpack_event(
    _logger: object, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Give structlog's `ProcessorFormatter` our keys and values instead of the rendered text.

    A structlog processor: put it first into the `foreign_pre_chain` of an application's own formatter.
    Records of others pass unchanged.
    """
    message = event_dict["_record"].msg
    if isinstance(message, Event):
        event_dict.update(message)
    return event_dict


def configure_logging(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["console", "json"] = "console",  # noqa: A002 - what the command line option is called
    stream: TextIO | None = None,
) -> None:
    """Render every log record of this process with structlog, ours from `level` on and others' warnings.

    For processes that belong to us, the command line and the server: it replaces the root logger's handlers.
    An application that embeds the package configures logging as it likes and does not call this. It may be
    called again; the last call counts.

    Args:
        level: The lowest level shown of this package's own events.
        format: Lines for people, coloured on a terminal, or one JSON object per line.
        stream: Where the lines go; standard error by default.
    """
    import structlog

    out = sys.stderr if stream is None else stream
    renderers: list[Processor]
    if format == "json":
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        # The default formatter prints the local variables of every frame, and with them arguments and keys.
        plain = structlog.dev.plain_traceback
        renderers = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)]
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                unpack_event,
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_ROOT).setLevel(level.upper())
