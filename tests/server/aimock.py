"""A model server that is not ours: the npm package `@copilotkit/aimock`, as a process.

It is installed once into a folder below the machine's temporary one, and never into the checkout. Where node,
npm or the registry is missing, the tests that need it are skipped, and say why.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "@copilotkit/aimock@1.43.0"


def installed() -> Path:
    """Return the package's own command, installed; skips the test where that cannot be had."""
    folder = Path(tempfile.gettempdir()) / "orchestrator-tests-node" / PACKAGE.rpartition("@")[2]
    command = folder / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    if command.exists():
        return command
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, then moved: two test runs at once must not meet half of it.
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", fresh, PACKAGE]
        try:
            done = subprocess.run(npm, capture_output=True, text=True, timeout=90, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install {PACKAGE} within 90 s")
        if done.returncode != 0:
            pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip()[:200]}")
        if not folder.exists():
            Path(fresh).rename(folder)
            Path(fresh).mkdir()
    return command


@contextmanager
def aimock(fixtures: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    """Run it on a free port with these fixtures; yields its base URL."""
    command = installed()
    file = folder / "fixtures.json"
    file.write_text(json.dumps({"fixtures": fixtures}))
    arguments = ["node", str(command), "-p", "0", "-c", "5", "-f", str(file), "--validate-on-load"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    ) as process:
        try:
            assert process.stdout is not None
            read = []
            for line in process.stdout:
                read.append(line)
                if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                raise AssertionError("".join(read))
            yield f"{found[1]}/v1"
        finally:
            process.kill()
