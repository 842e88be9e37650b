"""For tests of programs that use this package: a real server in this process, and a clock to turn by hand.

Owns starting and stopping the embedded server in a thread. It speaks real HTTP over a loopback socket;
nothing is mocked. Needs the `server` extra.
"""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.server.database import Database
    from orchestrator.server.models import Model
    from orchestrator.server.script import Script

__all__ = ["FakeClock", "RunningServer", "running_server"]

ScriptSource: TypeAlias = "Path | str | list[dict[str, Any]] | dict[str, Any] | None"
"""A script file; a script as YAML text; or rules, alone or in a whole script, as Python values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server that answers.

    Attributes:
        base_url: For clients, such as `http://127.0.0.1:40123/v1`.
        api_key: The key it wants, the first if it takes several; `""` when it wants none.
        db: Its SQLite file or its database's URL, which it holds exclusively while it runs.
        requests: `(method, path)` of every request it was sent, in order of arrival; grows meanwhile.
    """

    base_url: str
    api_key: str
    db: Database
    requests: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def running_server(
    script: ScriptSource = None,
    *,
    api_key: str | None = "test-key",
    other_keys: Sequence[str] = (),
    db: Database | None = None,
    run_ttl_s: float = 600.0,
    model: Model | None = None,
) -> Iterator[RunningServer]:
    """Run the embedded server in a thread of this process, on a free loopback port.

    Entering blocks until it answers, leaving blocks until it has stopped: within fractions of a second, with
    its thread, sockets and files closed, whatever was going on. May be entered many times, also at once.

    Args:
        script: What the rule engine plays, and the faults that requests meet (`orchestrator.server.script`).
        api_key: The key callers must send; `None` serves local callers without one.
        other_keys: Further keys, each with objects of its own that no other key sees.
        db: A SQLite file or the URL of a PostgreSQL database (`postgresql+psycopg://…`), to keep or to take
            up again; without one, a temporary file is used and removed.
        run_ttl_s: Seconds after which a run that is not over expires.
        model: What answers instead of the rule engine, such as an `orchestrator.server.chat.ChatModel`.
            Of the script, only its faults are played then.

    Raises:
        ScriptError: The script is wrong.
        OSError: The database's file cannot be created or written.
        DatabaseURLError: The URL cannot be used, or its driver is not installed.
        DatabaseHeldError: Another server works on the database.
        SchemaMismatchError: It holds the tables of a newer version or of another program.
        sqlalchemy.exc.SQLAlchemyError: It is no database, or cannot be reached.
        RuntimeError: The server did not start all the same; the log says why.
    """
    from orchestrator.server.app import PREFIX, create_app
    from orchestrator.server.listener import Server, listen, url_of
    from orchestrator.server.rules import RuleModel

    played = _played(script)
    with ExitStack() as resources:
        if db is None:
            directory = resources.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-"))
            db = Path(directory) / "orchestrator.sqlite"
        listener = listen("127.0.0.1", 0)
        resources.callback(listener.close)
        running = RunningServer(base_url=url_of(listener, PREFIX), api_key=api_key or "", db=db)
        app = create_app(
            db=db,
            model=model or RuleModel(played),
            api_keys=[*filter(None, [api_key]), *other_keys],
            run_ttl_s=run_ttl_s,
            faults=played.faults,
            observe=lambda method, path: running.requests.append((method, path)),
        )
        resources.callback(app.state.store.close)
        # A database that cannot be used raises here; in the server's thread it would only be logged.
        app.state.store.open()
        settled = threading.Event()
        server = Server(app, on_listening=settled.set)
        thread = threading.Thread(
            target=_run, args=(server, listener, settled), name="orchestrator-server", daemon=True
        )
        thread.start()
        settled.wait()
        try:
            if not server.started:
                raise RuntimeError("the server did not start; the log says why")
            yield running
        finally:
            server.should_exit = True
            thread.join()


def _run(server: Any, listener: Any, settled: threading.Event) -> None:
    try:
        server.run(sockets=[listener])
    except SystemExit:
        pass  # uvicorn's way to say that the application did not start
    finally:
        settled.set()


def _played(script: ScriptSource) -> Script:
    from orchestrator.server.script import build, load, parse

    if isinstance(script, Path):
        return load(script)
    return build(parse(script, "script") if isinstance(script, str) else script)


class FakeClock:
    """A clock that stands still until it is told otherwise; callable, like `time.time` or `time.monotonic`.

    Args:
        start: The first reading, in seconds.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def __call__(self) -> float:
        """Return the reading, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Turn the clock forward.

        Raises:
            ValueError: `seconds` is negative; clocks of this package are monotonic.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot be turned back, got {seconds} s")
        self._now += seconds
