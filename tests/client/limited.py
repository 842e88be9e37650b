"""Programs in processes of their own, whose limit of open files they may lower without harm to anybody."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PREAMBLE = """
import json, logging, os, resource, sys

class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.events = []

    def emit(self, record):
        if isinstance(record.msg, dict):
            self.events.append(dict(record.msg))

def limit(files):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))

def use_up(left):
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for _ in range(left):
            os.close(taken.pop())
    return taken

kept = Kept()
logging.getLogger("orchestrator").addHandler(kept)
logging.getLogger("orchestrator").setLevel(logging.INFO)
base_url = sys.argv[1]
"""


def told_by(program: str, base_url: str, *arguments: str) -> Any:
    """Run a program, and return what it printed, as JSON.

    It finds `limit(files)`; `use_up(left)`, which returns the files that it took; the events logged so far
    in `kept.events`; and the arguments, the first of them as `base_url`.
    """
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program, base_url, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)
