"""Bad weather in a process of its own: a proxy in front of a server, that breaks and refuses at random.

`with weather(base_url, seed) as bad:` starts it; `bad.base_url` is where to ask, and after the block
`bad.faults` counts what it did. The proxy is `storm.Rapids`, here beside whom it troubles instead of within:
who is measured has none of its sockets and tasks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

CHANCES: Final = {
    "unsent": 0.01,
    "unanswered": 0.015,
    "cut": 0.015,
    "ended": 0.01,
    "whenever": 0.02,
    "held": 0.05,
    "dripping": 0.05,
    "failed": 0.01,
    "unavailable": 0.01,
    "limited": 0.0001,
}
"""What becomes of a request, and how often: some fault for every other run.

There are few 429, for each of them slows all runs down for half a minute.
"""


@dataclass
class Weather:
    """The proxy.

    Attributes:
        base_url: Where it listens.
        faults: How often it did what; known once it has ended.
    """

    base_url: str
    faults: dict[str, int] = field(default_factory=dict)


@contextmanager
def weather(server_url: str, seed: int) -> Iterator[Weather]:
    """Run the proxy in front of a server.

    Raises:
        RuntimeError: It did not start.
    """
    port = urlsplit(server_url).port
    command = [sys.executable, __file__, str(port), str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        if not base_url:
            raise RuntimeError("the weather did not start")
        bad = Weather(base_url)
        try:
            yield bad
        finally:
            process.stdin.close()
            bad.faults = json.loads(process.stdout.readline() or "{}")


def main() -> None:
    """Serve until the parent is done, or dies."""
    sys.path.append(str(Path(__file__).parents[1] / "actors"))
    from storm import Rapids
    from stub_server import allow_many_files

    allow_many_files()
    rapids = Rapids(int(sys.argv[1]), int(sys.argv[2]), CHANCES)
    with rapids.flowing():
        print(rapids.base_url, flush=True)
        # The parent holds the other end.
        sys.stdin.read()
    print(json.dumps(rapids.faults), flush=True)


if __name__ == "__main__":
    main()
