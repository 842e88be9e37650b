"""What the package shows is what it says it shows."""

from __future__ import annotations

import importlib
import pkgutil
import types

import pytest

import orchestrator

PACKAGES = ["orchestrator"] + [
    module.name for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator.") if module.ispkg
]


LANGUAGE = {"annotations", "TYPE_CHECKING"}


def public(module: types.ModuleType) -> set[str]:
    """The names that a module binds for others: no submodules, nothing private, nothing of the language."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in LANGUAGE
    }


def test_the_public_names_are_exactly_the_namespace() -> None:
    assert set(orchestrator.__all__) == public(orchestrator)


def test_the_public_names_are_these() -> None:
    assert set(orchestrator.__all__) == {
        "ApprovalRequest",
        "BreakerPolicy",
        "Completed",
        "Failed",
        "Invocation",
        "Notice",
        "Orchestrator",
        "OrchestratorError",
        "RerunPolicy",
        "RestartPolicy",
        "Retry",
        "RunHandle",
        "RunResult",
        "RunSnapshot",
        "ServerLimits",
        "Stopped",
        "Timing",
        "Tool",
        "ToolCallResult",
        "ToolContext",
        "ToolError",
        "ToolRegistry",
        "tool",
    }


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_exports_what_it_names_and_nothing_else(name: str) -> None:
    package = importlib.import_module(name)
    named = getattr(package, "__all__", [])
    assert sorted(set(named)) == sorted(named)
    assert {export for export in named if not hasattr(package, export)} == set()
    # Less than all of them where some are imported when they are asked for.
    assert public(package) <= set(named)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_module_exports_what_it_names(name: str) -> None:
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__, f"{name}."):
        if module.name.endswith("__main__"):
            continue
        exports = getattr(importlib.import_module(module.name), "__all__", [])
        assert {
            export for export in exports if not hasattr(importlib.import_module(module.name), export)
        } == set()
