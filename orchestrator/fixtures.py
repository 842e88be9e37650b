"""The embedded server as a pytest fixture, for the tests of programs that use this package.

```python
# conftest.py
pytest_plugins = ["orchestrator.fixtures"]

# test_mine.py
@pytest.mark.threads_server(Path("rules.yaml"), run_ttl_s=2)
def test_mine(threads_server):
    with Orchestrator(base_url=threads_server.base_url, api_key=threads_server.api_key) as orchestrator: ...
```

Needs pytest, and the `server` extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.testing import RunningServer, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["threads_server"]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "threads_server(script, **options): what the fixture of this name gives to running_server()",
    )


@pytest.fixture
def threads_server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """A server of the test's own, which is stopped after it.

    The marker of the same name, on a test, a class or a module, takes the arguments of
    `orchestrator.testing.running_server`; a script's path is reckoned from the folder of the test's file.
    """
    marker = request.node.get_closest_marker("threads_server")
    given = () if marker is None else marker.args
    scripts = [request.path.parent / one if isinstance(one, Path) else one for one in given]
    with running_server(*scripts, **({} if marker is None else marker.kwargs)) as server:
        yield server
