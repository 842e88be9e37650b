"""The command line: options in, exit codes out. Wiring only; what the commands do is elsewhere."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from orchestrator.journal import SQLJournal

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Supervised runs of the Threads/Runs protocol: one actor for each run.",
)

KEY_VARIABLE = "ORCHESTRATOR_API_KEY"
"""The environment variable that `serve` takes its key from, where no option gives one."""

DB_VARIABLE = "ORCHESTRATOR_DB"
"""The same for the database, whose URL may hold a password."""
MODEL_KEY_VARIABLE = "ORCHESTRATOR_MODEL_KEY"
"""The environment variable that `serve` takes its model's key from, so that it stays out of `ps`."""

JOURNAL_VARIABLE = "ORCHESTRATOR_JOURNAL"
"""The environment variable that says which journal the commands on one work on."""

LogLevel = Literal["debug", "info", "warning", "error"]
ApiKeyFile = Annotated[
    Path | None, typer.Option(help="Read the API key from this file, so that it stays out of `ps`.")
]

_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE = re.compile(rf"(\d{{1,6}})([{''.join(_SECONDS)}])")

JournalURL = Annotated[
    str,
    typer.Option(
        envvar=JOURNAL_VARIABLE, help="The journal: sqlite:///runs.db, or postgresql+psycopg://… (its URL)."
    ),
]
Key = Annotated[str, typer.Argument(help="The run's key.", show_default=False)]


@app.command()
def demo(
    runs: Annotated[int, typer.Option(min=1, help="How many runs to start at once.")] = 25,
    watch: Annotated[
        Literal["stream", "poll"], typer.Option(help="Stream the runs, or poll them.")
    ] = "stream",
    base_url: Annotated[
        str | None, typer.Option(help="Another server than the demo's own; the threads stay there.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="The key for that server; or OPENAI_API_KEY.")] = None,
    api_key_file: ApiKeyFile = None,
    assistant_id: Annotated[
        str | None,
        typer.Option(help="An assistant there that knows the demo's tools; one is created by default."),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged to stderr.")] = "warning",
) -> None:
    """Start many runs at once against an embedded server, watch them, cancel one, check every answer."""
    from rich.console import Console

    from orchestrator.demo.interruption import ignore_from_now_on
    from orchestrator.demo.play import play
    from orchestrator.telemetry import configure_logging

    if base_url is None and (api_key, api_key_file, assistant_id) != (None, None, None):
        _refuse("a key or an assistant belongs to another server: give its --base-url, too")
    if api_key is None and api_key_file is not None:
        api_key = _key_in(api_key_file)
    configure_logging(level=log_level)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer's "°" must not end the demo where there is none
        sys.stdout.reconfigure(errors="replace")
    try:
        code = play(
            Console(),
            runs=runs,
            watch=watch,
            base_url=base_url,
            api_key=api_key,
            assistant_id=assistant_id,
        )
    except OrchestratorError as error:
        _refuse(" ".join(str(error).split()), code=1)
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read has had enough, which needs no words
            raise
        _refuse(f"the machine does not let the demo go on: {error}", code=1)
    ignore_from_now_on()
    raise typer.Exit(code)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8765,
    db: Annotated[
        str | None,
        typer.Option(
            envvar=DB_VARIABLE,
            help="SQLite file or postgresql+psycopg:// URL, kept and taken up again; else a temporary file.",
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help=f"A key that is accepted, with objects of its own; repeatable. Or {KEY_VARIABLE}."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Read keys from this file, one a line; they stay out of `ps`.")
    ] = None,
    script: Annotated[
        Path | None, typer.Option(help="Rules for the built-in model: YAML, or a Python file (executed).")
    ] = None,
    model_url: Annotated[
        str | None,
        typer.Option(help="A Chat Completions endpoint that answers, such as http://127.0.0.1:11434/v1."),
    ] = None,
    model_key: Annotated[
        str | None, typer.Option(help=f"The key it wants. Or {MODEL_KEY_VARIABLE}, out of `ps`.")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="The model to ask it for, whatever assistants and runs say.")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged to stderr.")] = "info",
) -> None:
    """Serve the Threads/Runs protocol from one database, in front of a model or the built-in rule engine."""
    from orchestrator.server.serve import run

    keys = list(api_key or ())
    if api_key_file is not None:
        keys.extend(_keys_in(api_key_file))
    if not keys and (key := os.environ.get(KEY_VARIABLE)):
        # Without what a file or a shell left around it, which no header could carry.
        keys.append(key.strip())
    if model_url is not None and model_key is None:
        model_key = os.environ.get(MODEL_KEY_VARIABLE, "").strip() or None
    code = run(
        host=host,
        port=port,
        db=Path(db) if db and "://" not in db else db or None,
        api_keys=keys,
        script=script,
        model_url=model_url,
        model_key=model_key,
        model_name=model_name,
        log_level=log_level,
    )
    raise typer.Exit(code)


@app.command()
def runs(
    journal: JournalURL,
    all_: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,  # noqa: FBT002
    limit: Annotated[int, typer.Option(min=1, help="The most that are listed.")] = 100,
) -> None:
    """List the runs in a journal that are not over: how each stands, and which process conducts it."""
    from orchestrator.commands.listing import print_runs

    with _opened(journal) as opened:
        print_runs(_console(), opened.runs(ended=all_, limit=limit), limit=limit)


@app.command()
def show(
    key: Key,
    journal: JournalURL,
    data: Annotated[bool, typer.Option("--data", help="The calls' arguments and outputs, too.")] = False,  # noqa: FBT002
) -> None:
    """Show a run in a journal: its ids, its time line, and its tool calls."""
    from orchestrator.commands.listing import print_history

    with _opened(journal) as opened:
        print_history(_console(), opened.show(key), data=data)


@app.command()
def cancel(key: Key, journal: JournalURL) -> None:
    """Ask for the end of a run in a journal, whichever process conducts it, or will."""
    from orchestrator.commands.listing import safe, standing

    with _opened(journal) as opened:
        opened.cancel(key)
        run = opened.show(key).run
    outlook = {
        "ended": f"is over: {standing(run)}",
        "waiting": "is cancelled as soon as somebody takes it up",
        "open": f"is asked to end, by {run.owner}"
        if run.held
        else "is cancelled as soon as somebody resumes it",
    }
    _say(f"{safe(key)} {outlook[run.state]}")


@app.command()
def resume(
    journal: JournalURL,
    app_path: Annotated[
        str, typer.Option("--app", help="module:name of an Orchestrator, or of a function that makes one.")
    ],
    forever: Annotated[  # noqa: FBT002 - an option
        bool, typer.Option("--forever", help="Go on with what other processes leave, until a signal.")
    ] = False,
    drain_s: Annotated[
        float, typer.Option(min=0, help="Seconds that open runs have to end after a signal.")
    ] = 10.0,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged to stderr.")] = "warning",
) -> None:
    """Take up the runs whose processes have died or let go of them, and wait for their ends."""
    from orchestrator.commands.resuming import BadApplicationError, found, take_up
    from orchestrator.telemetry import configure_logging

    configure_logging(level=log_level)
    try:
        orchestrator = found(app_path)
    except BadApplicationError as error:
        _refuse(str(error))
    with _opened(journal) as opened:
        if orchestrator.journal != opened:
            orchestrator.close()
            _refuse(f"the orchestrator at {app_path} has another journal than --journal says")
        code = take_up(orchestrator, forever=forever, drain_s=drain_s, tell=_say)
    raise typer.Exit(code)


@app.command()
def prune(
    journal: JournalURL,
    older_than: Annotated[str, typer.Option(help="An age, such as 12h, 30d or 4w.", show_default=False)],
) -> None:
    """Delete the runs from a journal that ended longer ago than this, with all that is kept of them."""
    age = _AGE.fullmatch(older_than.strip())
    if age is None:
        _refuse(f"--older-than must be an age such as 90s, 45m, 12h, 30d or 4w, not {older_than!r}")
    with _opened(journal) as opened:
        deleted = opened.prune(int(age[1]) * _SECONDS[age[2]])
    _say(f"{deleted} {'run is' if deleted == 1 else 'runs are'} deleted")


@contextmanager
def _opened(url: str) -> Iterator[SQLJournal]:
    """A journal that exists; what it cannot do is a line on stderr."""
    from orchestrator.journal import sql_journal

    try:
        journal = sql_journal(url)
    except ValueError as error:
        _refuse(str(error))
    try:
        yield journal
    except OrchestratorError as error:
        _refuse(" ".join(str(error).split()), code=1)
    finally:
        journal.close(timeout_s=5.0)


def _console() -> Console:
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):  # a key's letters must not end the command
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's own output


def _key_in(file: Path) -> str:
    keys = _keys_in(file)
    if len(keys) != 1:
        _refuse(f"{file} must hold one API key and nothing else")
    return keys[0]


def _keys_in(file: Path) -> list[str]:
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError as error:
        _refuse(f"cannot read {file}: {error.strerror}")
    except UnicodeDecodeError:
        _refuse(f"cannot read {file}: it is not text")
    # An empty file must not turn into a server without a key.
    if not words:
        _refuse(f"{file} holds no API key")
    return words


def _refuse(message: str, code: int = 2) -> NoReturn:
    print(f"orchestrator: {message}", file=sys.stderr)  # noqa: T201 - the command's own message
    raise typer.Exit(code)
