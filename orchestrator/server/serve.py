"""`orchestrator serve`: the server as a process of its own.

Owns what a process needs around the application: the socket, the file, the script, the log on stderr,
signals and exit codes. `orchestrator.cli` calls `run` with what its options say.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from orchestrator.telemetry import configure_logging

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from orchestrator.server.database import Database
    from orchestrator.server.models import Model
    from orchestrator.server.script import Script
    from orchestrator.server.store import Store

__all__ = ["run"]


class _BadConfigurationError(Exception):
    """The server cannot start as it was asked to; the text is one line for stderr."""


def run(
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    db: Database | None = None,
    api_keys: Sequence[str] = (),
    script: Path | None = None,
    model_url: str | None = None,
    model_key: str | None = None,
    model_name: str | None = None,
    run_ttl_s: float = 600.0,
    log_level: Literal["debug", "info", "warning", "error"] = "info",
    on_listening: Callable[[str], None] | None = None,
) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; blocks, and gets the signals only on the main thread.

    Prints `listening on http://HOST:PORT/v1` on stdout once connections are accepted, and logs to stderr.
    On a signal, open streams are ended, what was accepted is on disk, and the call returns within two seconds
    or so.

    Args:
        host: Address to listen on; one that is not loopback needs at least one key.
        port: TCP port; 0 picks a free one.
        db: A SQLite file, or the URL of a PostgreSQL database (`postgresql+psycopg://…`), kept and taken up
            again; without one, a temporary file, removed at the end.
        api_keys: The accepted keys, each with a namespace of its own; without any, only local callers are
            served.
        script: Rules for the built-in model (`orchestrator.server.script`); a Python file is executed.
        model_url: A Chat Completions endpoint that answers instead of the built-in model.
        model_key: The key it wants; never logged.
        model_name: The model to ask it for, whatever the runs say.
        run_ttl_s: Seconds after which a run that is not over expires.
        log_level: `"debug"`, `"info"` (a line per request), `"warning"` or `"error"`.
        on_listening: Called with the base URL instead of the line on stdout being printed.

    Returns:
        The exit code: 0 after a signal, 2 for a configuration that cannot work (one line on stderr says why).
    """
    configure_logging(level=log_level)
    try:
        with ExitStack() as resources:
            _serve(
                resources,
                _listen(host, port, api_keys),
                db or _temporary(resources),
                _script(script),
                _Upstream(model_url, model_key, model_name),
                api_keys=api_keys,
                run_ttl_s=run_ttl_s,
                announce=on_listening or _print_listening,
            )
    except _BadConfigurationError as error:
        print(f"orchestrator serve: {error}", file=sys.stderr)  # noqa: T201 - the command's own message
        return 2
    return 0


def _serve(
    resources: ExitStack,
    listener: socket.socket,
    db: Database,
    script: Script,
    upstream: _Upstream,
    *,
    api_keys: Sequence[str],
    run_ttl_s: float,
    announce: Callable[[str], None],
) -> None:
    from orchestrator.server.app import PREFIX, create_app
    from orchestrator.server.listener import Server, url_of

    resources.callback(listener.close)
    url = url_of(listener, PREFIX)
    app = create_app(
        db=db, model=_model(script, upstream), faults=script.faults, api_keys=api_keys, run_ttl_s=run_ttl_s
    )
    resources.callback(app.state.store.close)
    _open(app.state.store, db)
    _stop_with_the_terminal()
    Server(app, on_listening=lambda: announce(url)).run(sockets=[listener])


def _stop_with_the_terminal() -> None:
    """End in order when the terminal is closed, too; under `nohup` the signal is ignored, and stays so."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def _print_listening(url: str) -> None:
    try:
        print(f"listening on {url}", flush=True)  # noqa: T201 - what starters of the process wait for
    except BrokenPipeError:  # nobody waits for it; what is left in the buffer must not fail at the exit again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _listen(host: str, port: int, api_keys: Sequence[str]) -> socket.socket:
    from orchestrator.server.listener import listen
    from orchestrator.server.security import is_loopback

    if not api_keys and not is_loopback(host):
        raise _BadConfigurationError(
            f"refusing to listen on {host} without an API key: give a key, or listen on 127.0.0.1"
        )
    if not all(api_keys):
        raise _BadConfigurationError("an API key is empty")
    try:
        return listen(host, port)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _BadConfigurationError(f"cannot listen on {host}:{port}: {reason}") from None


class _Upstream(NamedTuple):
    """A Chat Completions endpoint, as it was asked for."""

    url: str | None
    key: str | None
    name: str | None


def _model(script: Script, upstream: _Upstream) -> Model:
    if upstream.url is None:
        from orchestrator.server.rules import RuleModel

        if upstream != (None, None, None):
            raise _BadConfigurationError("a model's key or name belongs to an endpoint: give its URL, too")
        return RuleModel(script)
    from orchestrator.server.chat import BadEndpointError, ChatModel, Endpoint

    if script.rules:
        raise _BadConfigurationError(
            "the script has rules, and a model's URL was given: only one can answer; faults alone may stay"
        )
    try:
        return ChatModel(Endpoint.of(upstream.url, upstream.key), name=upstream.name)
    except BadEndpointError as error:
        raise _BadConfigurationError(str(error)) from None


def _script(path: Path | None) -> Script:
    from orchestrator.server.script import Script, ScriptError, load

    try:
        return Script() if path is None else load(path)
    except ScriptError as error:
        raise _BadConfigurationError(" ".join(str(error).split())) from None


def _temporary(resources: ExitStack) -> Path:
    directory = resources.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-"))
    return Path(directory) / "orchestrator.sqlite"


def _open(store: Store, db: Database) -> None:
    """Open the database before anything is announced, so that a bad one is a line and not a stack trace."""
    from sqlalchemy.exc import SQLAlchemyError

    from orchestrator.server.database import DatabaseHeldError, DatabaseURLError, shown
    from orchestrator.server.schema import SchemaMismatchError

    try:
        store.open()
    except OSError as error:
        reason = error.strerror
    except (DatabaseHeldError, DatabaseURLError, SchemaMismatchError) as error:
        reason = str(error)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).partition("\n")[0]
    else:
        return
    raise _BadConfigurationError(f"cannot use the database {shown(db)}: {reason}")
