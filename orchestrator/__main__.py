"""`python -m orchestrator`, and the `orchestrator` command."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

_NEEDED = {
    "cli": ("typer", "rich"),
    "journal": ("sqlalchemy", "alembic"),
    "server": ("typer", "rich", "starlette", "uvicorn", "sqlalchemy", "yaml"),
}
_JOURNAL_COMMANDS = {"runs", "show", "cancel", "resume", "prune"}


def main() -> int:
    """Run the command line; without what it needs, say which extra to install and return 2."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    extras = ["server"] if command in {"demo", "serve"} else ["cli"]
    if command in _JOURNAL_COMMANDS:
        extras.append("journal")
    absent = {one: [name for name in _NEEDED[one] if not importlib.util.find_spec(name)] for one in extras}
    missing = [name for names in absent.values() for name in names]
    extra = ",".join(one for one in extras if absent[one])
    if missing:
        print(  # noqa: T201 - the command's own message
            f"orchestrator: this needs the {extra!r} extra ({', '.join(missing)} not found): "
            f"pip install 'run-orchestrator[{extra}]'",
            file=sys.stderr,
        )
        return 2
    try:
        from orchestrator.cli import app

        app(prog_name="orchestrator")
    except KeyboardInterrupt:  # while a command is imported; afterwards it heeds the signal itself
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
