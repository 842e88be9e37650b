"""A long event stream is read in memory that does not depend on its length."""

from __future__ import annotations

import pytest
from event_stream import MB, READERS, row
from stub_server import stub_server

pytestmark = pytest.mark.alone

ALLOWED_BYTES = 8 * MB


@pytest.mark.timeout(900)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "megabytes", [pytest.param(32, id="32 MB"), pytest.param(1000, id="1 GB", marks=pytest.mark.long)]
)
def test_memory_does_not_grow_with_the_stream(
    reader: str, megabytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with stub_server() as base_url:
        reading = READERS[reader](base_url, megabytes * MB)
    with capsys.disabled():
        print("\n" + row(reader, reading))
    assert reading.streamed_bytes >= megabytes * MB
    assert reading.grown_bytes < ALLOWED_BYTES
