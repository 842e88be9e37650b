"""The layer rule, read from the source: a module imports only from rows above its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import orchestrator

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(orchestrator.__path__[0])

ROWS = (
    "errors",
    "telemetry",
    "protocol",
    "client",
    "tools",
    "runs",
    "runtime",
    "journal",
    "supervision",
    "orchestrator",
    "workers",
    "server",
    "testing",
    "fixtures",
    "demo",
    "commands",
    "",  # the package's own __init__: the public names
    "cli",
    "__main__",
)

# The server speaks the protocol from the other side: sharing more with the client would hide its mistakes.
SERVER_IMPORTS = ("errors", "telemetry", "protocol", "client.retry", "client.transport", "server")

# Time, chance and I/O come in as arguments and go out as effects.
IMPURE = {"asyncio", "httpx", "pykka", "random", "structlog", "threading", "time"}

# Slow to import, or missing without an extra. A module outside this list imports them on first use; a module
# in it is itself imported on first use, which the test of `import orchestrator` sees to.
HEAVY = {"alembic", "celery", "griffe", "httpcore", "httpx", "pydantic", "rich", "sqlalchemy", "starlette"}
HEAVY |= {"httptools", "structlog", "tenacity", "typer", "uvicorn", "uvloop", "yaml"}
HEAVY_ALLOWED = {
    "client.deadline": {"httpcore"},
    "client.dialing": {"httpcore"},
    "client.exchange": {"httpcore", "httpx"},
    "client.http11": {"httpcore"},
    "client.wire": {"httpcore", "httptools"},
    "client.pool": {"httpcore"},
    "client.sockets": {"httpcore"},
    "client.transport": {"httpcore", "httpx"},
    "tools.schema": {"pydantic"},
    "tools.arguments": {"pydantic"},
    "journal": {"alembic", "sqlalchemy"},
    "server": {"sqlalchemy", "starlette", "uvicorn"},
    "server.migrations": {"alembic"},
    "workers.asgi": {"starlette"},
    "workers.attendance": {"celery"},
    "workers.celery": {"celery"},
    "cli": {"rich", "typer"},
    "commands.listing": {"rich"},
}


def modules() -> dict[str, str]:
    """Every module of the package, named relative to it, with its source."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def belongs(name: str, to: str) -> bool:
    return name == to or name.startswith(f"{to}.")


MODULES = modules()
PURE = sorted(name for name in MODULES if belongs(name, "runs") and name != "runs.backend")
PACKAGES = {name.rpartition(".")[0] for name in MODULES} | {""}


def imported(name: str, node: ast.AST) -> Iterator[str]:
    """The absolute names of the modules that one node of a module's tree imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = node.module or ""
        if node.level:
            here = f"orchestrator.{name}".rstrip(".").split(".")
            up = node.level - (name in PACKAGES)
            origin = ".".join([*here[: len(here) - up], *filter(None, [node.module])])
        for alias in node.names:
            submodule = f"{origin}.{alias.name}"
            yield submodule if submodule.removeprefix("orchestrator.") in MODULES else origin
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        for argument in node.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def imports_of(name: str, source: str) -> list[str]:
    return [target for node in ast.walk(ast.parse(source)) for target in imported(name, node)]


def ours(targets: list[str]) -> list[str]:
    return [
        target.removeprefix("orchestrator").removeprefix(".")
        for target in targets
        if target.partition(".")[0] == "orchestrator"
    ]


def row(name: str) -> int:
    return ROWS.index(name.partition(".")[0])


def upward_imports(name: str, source: str) -> list[str]:
    """What a module imports from its own row, save its own package, or from below."""
    targets = ours(imports_of(name, source))
    if belongs(name, "server"):
        return [target for target in targets if not any(belongs(target, to) for to in SERVER_IMPORTS)]
    same = name.partition(".")[0]
    return [target for target in targets if target.partition(".")[0] != same and row(target) >= row(name)]


def heavy_imports(name: str, source: str) -> set[str]:
    """The heavy packages that importing a module imports."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        found.update(target.partition(".")[0] for target in imported(name, node))
        waiting.extend(ast.iter_child_nodes(node))
    return found & HEAVY


def heavy_allowed(name: str) -> set[str]:
    return {package for to, packages in HEAVY_ALLOWED.items() if belongs(name, to) for package in packages}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_a_row_and_imports_only_from_rows_above_it(name: str) -> None:
    assert name.partition(".")[0] in ROWS
    assert upward_imports(name, MODULES[name]) == []


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_are_imported_on_first_use(name: str) -> None:
    assert heavy_imports(name, MODULES[name]) <= heavy_allowed(name)


@pytest.mark.parametrize("name", PURE)
def test_a_run_s_state_machine_and_data_know_no_clock_chance_or_io(name: str) -> None:
    roots = {target.partition(".")[0] for target in imports_of(name, MODULES[name])}

    assert roots & IMPURE == set()


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("runtime.actor", "from orchestrator.errors import OrchestratorClosed", []),
        ("runtime.actor", "from orchestrator.runtime.loop import acquire", []),
        ("runtime.actor", "from .loop import acquire", []),
        ("runtime.actor", "from orchestrator.supervision import supervisor", ["supervision.supervisor"]),
        ("runtime.actor", "from ..supervision.supervisor import X", ["supervision.supervisor"]),
        ("runtime.actor", "import orchestrator.journal", ["journal"]),
        ("runtime.actor", "def f():\n from orchestrator.journal import x", ["journal"]),
        ("runtime.actor", "if TYPE_CHECKING:\n from orchestrator.journal import x", ["journal"]),
        ("runtime.actor", "import_module('orchestrator.journal')", ["journal"]),
        ("runtime.actor", "from orchestrator import tool", [""]),
        ("runtime", "from .actor import LoopActor", []),
        ("errors", "from orchestrator.telemetry import get_logger", ["telemetry"]),
        ("server.app", "from orchestrator.client.retry import NONCE_KEY", []),
        ("server.app", "from orchestrator.client import retry", []),
        ("server.app", "from orchestrator.client import ThreadsClient", ["client"]),
        ("server.app", "from orchestrator.tools import tool", ["tools"]),
        ("testing", "from orchestrator.server import app", []),
        ("__main__", "from orchestrator.cli import main", []),
        ("orchestrator", "import orchestrators.of.others", []),
    ],
)
def test_the_reader_sees_every_way_to_import(name: str, source: str, expected: list[str]) -> None:
    assert upward_imports(name, source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import httpx", {"httpx"}),
        ("from httpx import Client", {"httpx"}),
        ("try:\n import pydantic.fields\nexcept ImportError: pass", {"pydantic"}),
        ("class A:\n import yaml", {"yaml"}),
        ("def f():\n import httpx", set()),
        ("if TYPE_CHECKING:\n import httpx", set()),
    ],
)
def test_the_reader_tells_import_time_from_first_use(source: str, expected: set[str]) -> None:
    assert heavy_imports("runtime.actor", source) == expected


# What heavy packages bring along.
BROUGHT_ALONG = {"anyio", "click", "h11", "httptools", "pydantic_core", "pygments"}

IMPORT_SCRIPT = """
import sys, threading

seen = []
watched = ("socket.__new__", "socket.connect", "_thread.start_new_thread", "subprocess.Popen", "os.fork")
sys.addaudithook(lambda event, args: seen.append(event) if event in watched else None)
before = set(sys.modules)
import orchestrator
print(seen)
print(threading.active_count())
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} & set(sys.argv[1:])))
"""


def test_importing_the_package_starts_nothing_and_loads_nothing_heavy() -> None:
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_SCRIPT, *HEAVY, *BROUGHT_ALONG],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert process.stderr == ""
    assert process.stdout.splitlines() == ["[]", "1", "[]"]
