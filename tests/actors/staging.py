"""What tests of actors share: a stage, and a look at what is left. A plugin, for mypy takes one conftest."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage

# The stage is imported on first use: these fixtures are known to tests that have no use for a server.


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A server for all tests of a module, on the module's own `RULES` where it has any."""
    from stage import staged

    with staged(getattr(request.module, "RULES", None)) as stage:
        yield stage


@pytest.fixture
def nothing_is_left(stage: Stage) -> Iterator[None]:
    """What a test made is gone after it; a module asks for it with `pytestmark`."""
    from stage import assert_nothing_left

    yield
    assert_nothing_left(stage.server.base_url, ours=1)


@pytest.fixture
def no_actor_is_left() -> Iterator[None]:
    """What a test with actors made is gone after it, the loop thread too; for those that need no server."""
    from pykka import ActorRegistry

    yield
    left = ActorRegistry.get_all()
    for ref in left:
        ref.stop(block=False)
    assert left == []
    for thread in threading.enumerate():
        if thread.name == "orchestrator-actors":
            thread.join(10)
            assert not thread.is_alive()
