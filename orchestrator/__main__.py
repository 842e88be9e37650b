"""`python -m orchestrator`, and the `orchestrator` command."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

_CLI = ("typer", "rich")
_SERVER = (*_CLI, "starlette", "uvicorn", "sqlalchemy", "yaml")


def main() -> int:
    """Run the command line; without what it needs, say which extra to install and return 2."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    extra, needed = ("server", _SERVER) if command in {"demo", "serve"} else ("cli", _CLI)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
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
