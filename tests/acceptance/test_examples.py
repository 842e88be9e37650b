"""Every example runs offline, from the checkout's root, and prints what it says."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from processes import ROOT, finished

if TYPE_CHECKING:
    from pathlib import Path

OUTPUTS = {
    "approval.py": (
        r'\{"order": "A1", "paid": 5\}\n'
        r'\{"order": "B2", "paid": 40\}\n'
        r'\{"error": \{"type": "denied", "message": "the call was denied: ask again with the receipt"\}\}\n'
        r'\{"error": \{"type": "denied", "message": "the call was denied: we never pay that much"\}\}\n'
    ),
    "client.py": (
        r"(\[queued\]\n)+\[in_progress\]\n\[requires_action\]\n"
        r"\[queued\]\n\[in_progress\]\n"
        r"(  '.{1,8}'\n){5}"
        r"\[completed\]\n"
        r"user: Weather in Rome\?\n"
        r"assistant: Rome has 25\.3 °C on average in July\.\n"
        r"tool_calls completed\nmessage_creation completed\ndeleted\n"
    ),
    "crash_and_resume.py": (
        r"crash:\n"
        r"(  (find_flight|book_hotel)\(Rome\) is called\n){2}"
        r"  the process ends with SIGKILL\n"
        r"resume:\n"
        r"  find_flight\(Rome\) is called\n"
        r'get_weather: \{"city": "Rome", "month": "July", "mean_c": 25\.3\}\n'
        r"find_flight: 09:40\n"
        r"book_hotel: unknown: the process died that made the call, and whether it took effect is not known\n"
        r"The trip to Rome is planned; please check the hotel\.\n"
        r"1 run, 1 submission\n"
    ),
    "faults.py": (
        r"Rome has 25\.3 °C on average in July\.\n"
        r"2 requests for a run, 1 run\n"
        r"1 submission, 1 tool call\n"
    ),
    "first_run.py": r"It is \d\d:\d\d in Europe/Oslo and \d\d:\d\d in Asia/Tokyo\.\n",
    "many_runs.py": (
        r"100 runs are started\n"
        r"\{'cancelled': 1, 'completed': 99\}\n"
        r"Oslo has 17\.6 °C on average and Nairobi has 16\.9 °C on average in July\.\n"
    ),
    "streaming.py": (
        r"(\[queued\]\n)+\[in_progress\]\n\[requires_action\]\n"
        r"  get_weather answered\n  get_weather answered\n"
        r"\[queued\]\n\[in_progress\]\n"
        r"(  '.{1,8}'\n){9}"
        r"\[completed\]\n"
        r"Tokyo has 25\.7 °C on average and Nairobi has 16\.9 °C on average in July\.\n"
    ),
    "supervising.py": (
        r"first is watching and waits for the server\n"
        r"first: cancelled\n"
        r"second: completed Rome has 25\.3 °C on average in July\.\n"
    ),
    "tools.py": (
        r"counting coffee, counting tea\n"
        r'stock: \{"item": "tea", "count": 3\} \(second attempt\)\n'
        r'stock: \{"item": "coffee", "count": 8\}\n'
        r'price: \{"item": "tea", "price": "4\.20"\}\n'
        r'price: \{"item": "coffee", "price": "7\.90"\}\n'
        r"tea for 4\.20 and coffee for 7\.90\.\n"
        r"the run is cancelled: ConnectionError\('the bank does not answer for visa'\)\n"
        r"\{('(stock|price|charge)': [123](, )?){3}\}\n"
    ),
    "typed_arguments.py": (
        r"book: nights maximum: .*; nights minimum: .*; "
        r"nights type: the assistant says string, the function integer; room: only the function knows it\n"
        r"every function of the assistant has its handler\n"
        r'\{"error": \{"type": "invalid_arguments", "message": "from: Input should be a valid date .*"\}\}\n'
        r'\{"city": "Oslo", "room": "suite", "until": "2026-05-04", "price": "420.75"\}\n'
        r"A suite in Oslo until 2026-05-04, for 420\.75 euros\.\n"
    ),
    "weather.py": "",
    "web_app.py": (
        r"202 \{'key': 'question-1'\}\n"
        r"tool\.finished\n"
        r'outcome: \{"status":"completed","text":"Rome has 25\.3 °C on average in July\."\}\n'
        r"the application has ended\n"
    ),
    "worker_recipes.py": (
        r"Rome has 25\.3 °C on average in July\.\n"
        r"told to stop: 0 runs are left to others\n"
        r"Rome has 25\.3 °C on average in July\.\n"
        r"(Oslo has [\d.]+ °C on average in July\.\n){2}"
        r"2 runs were created\n"
    ),
}


def test_each_example_has_its_output_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(OUTPUTS)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_example_prints_what_it_says(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", f"examples/{name}"]
    example = finished(tmp_path, command=command, cwd=ROOT, env={"PYTHONUTF8": "1"})
    assert (example.code, example.err) == (0, ""), example
    assert re.fullmatch(OUTPUTS[name], example.out), example.out


def test_the_readme_s_first_program_is_the_first_example() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert first is not None
    assert first[1] == (ROOT / "examples" / "first_run.py").read_text(encoding="utf-8")


def test_the_readme_shows_what_the_examples_print_and_the_rules_they_play() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\$ python examples/(\w+\.py)\n((?:(?!```|\n\$ ).+\n)+)", readme, re.MULTILINE))
    assert shown.keys() == OUTPUTS.keys() - {"weather.py"}
    for name, output in shown.items():
        assert re.fullmatch(OUTPUTS[name], output), (name, output)
    rules = re.search(r"^```yaml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert rules is not None
    assert rules[1] == (ROOT / "examples" / "weather.yaml").read_text(encoding="utf-8")
