"""The demo's questions, and what makes an answer right.

An answer is right when the model called the tools that the question is about, each call was answered with
what the tool itself says, and the text is what these outputs make of it. The embedded server's rules
(`rules.yaml`) play the model's part.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from orchestrator.demo.tools import TOOLS, stations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.runs.result import RunResult, ToolCallResult

__all__ = ["Asked", "Question", "asked"]

_PONDER = "Think about the weather for a long while."
"""What takes the rule engine a minute."""

_CLOCK_SLACK_MINUTES = 11
"""How long ago a clock may have been read: a run's deadline, and a minute."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {tool.name: tool for tool in TOOLS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        text: What the user asks.
        calls: The tool calls it takes, in order: name and arguments.
        answer: The text that the calls' outputs make.
    """

    text: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    answer: Callable[[list[Any]], str]

    def wrong(self, result: RunResult) -> str | None:
        """Say what is wrong with a completed run's answer; `None` when it is right."""
        made = [(call.name, json.loads(call.arguments)) for call in result.tool_calls]
        if made != list(self.calls):
            return f"called {made}, expected {list(self.calls)}"
        for call in result.tool_calls:
            if call.error is not None:
                return f"{call.name} failed: {call.error}"
            if not _agrees(json.loads(call.output), _called(call)):
                return f"{call.name} was answered {call.output}"
        outputs = [json.loads(call.output) for call in result.tool_calls]
        expected = self.answer(outputs)
        return None if result.text == expected else f"said {result.text!r}, expected {expected!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one run of the demo is asked.

    Attributes:
        text: What the user says.
        question: The question behind it.
        to_cancel: Whether the demo cancels the run on the way.
    """

    text: str
    question: Question
    to_cancel: bool


def asked(runs: int, *, own: bool) -> list[Asked]:
    """What the demo's runs are asked: varied, the same each time; the middle one of several is cancelled.

    Args:
        runs: How many there are.
        own: Whether the demo's own rules answer. They take a minute for the one that is cancelled; a model's
            time should not be wasted.
    """
    middle = runs // 2 if runs > 1 else None
    return [
        Asked(
            text=_PONDER if own and index == middle else question.text,
            question=question,
            to_cancel=index == middle,
        )
        for index, question in enumerate(islice(_series(), runs))
    ]


def _series() -> Iterator[Question]:
    cities = sorted(stations())
    kinds = cycle((_times, _arithmetic, _difference, _offset, _portrait, _climate))
    index = 0
    while True:
        here = cities[index % len(cities)]
        there = cities[(index * 3 + 1) % len(cities)]
        yield next(kinds)(here, there if there != here else cities[(index + 1) % len(cities)], index)
        index += 1


def _times(here: str, there: str, _: int) -> Question:
    return Question(
        text=f"What time is it in {here} and {there}?",
        calls=(("get_time", {"city": here}), ("get_time", {"city": there})),
        answer=lambda outputs: ", ".join(f"{o['city']}: {o['time']} (UTC{o['offset']})" for o in outputs),
    )


def _arithmetic(_here: str, _there: str, index: int) -> Question:
    expression = f"({index + 17} + 4) * {index % 7 + 2} - 9 / 3"
    return Question(
        text=f"What is {expression}?",
        calls=(("calculate", {"expression": expression}),),
        answer=lambda outputs: f"{expression} = {json.dumps(outputs[0]['result'])}",
    )


def _offset(here: str, _there: str, index: int) -> Question:
    day = dt.date(2026, index % 12 + 1, 15).isoformat()
    return Question(
        text=f"How far is {here} from UTC on {day}?",
        calls=(("utc_offset", {"city": here, "day": day}),),
        answer=lambda outputs: f"{here} is {json.dumps(outputs[0]['hours'])} hours from UTC on {day}.",
    )


def _climate(here: str, _there: str, _: int) -> Question:
    return Question(
        text=f"How warm is {here} over the year?",
        calls=(("climate", {"city": here, "measure": "mean_c"}),),
        answer=lambda outputs: (
            f"{here}: {outputs[0]['mean']} °C on average, from {outputs[0]['min']} to {outputs[0]['max']}."
        ),
    )


def _difference(here: str, there: str, index: int) -> Question:
    month = index % 12 + 1
    arguments = {"measure": "mean_c", "month": month}
    expression = f"{_mean_c(here, month)} - {_mean_c(there, month)}"
    return Question(
        text=f"How much warmer is {here} than {there} in month {month}?",
        calls=(
            ("climate", {"city": here, **arguments}),
            ("climate", {"city": there, **arguments}),
            ("calculate", {"expression": expression}),
        ),
        answer=lambda outputs: (
            f"{here} {outputs[0]['mean']} °C, {there} {outputs[1]['mean']} °C: "
            f"a difference of {json.dumps(outputs[2]['result'])} °C."
        ),
    )


def _portrait(here: str, _there: str, _: int) -> Question:
    return Question(
        text=f"Tell me about {here}.",
        calls=(
            ("get_time", {"city": here}),
            ("climate", {"city": here, "measure": "mean_c"}),
            ("climate", {"city": here, "measure": "rain_mm"}),
        ),
        answer=lambda outputs: (
            f"In {here} it is {outputs[0]['time']}; "
            f"{outputs[1]['mean']} °C and {outputs[2]['mean']} mm of rain in an average month."
        ),
    )


def _mean_c(city: str, month: int) -> float:
    return next(float(row["mean_c"]) for row in stations()[city] if row["month"] == str(month))


def _called(call: ToolCallResult) -> Any:
    """What the tool says when it is asked directly."""
    arguments = json.loads(call.arguments)
    if call.name == "utc_offset":
        arguments["day"] = dt.date.fromisoformat(arguments["day"])
    value = _FUNCTIONS[call.name](**arguments)
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _agrees(output: Any, again: Any) -> bool:
    """Whether two answers of one tool agree; the clock may have gone on meanwhile."""
    if "time" not in again:
        return bool(output == again)
    then, now = (dt.datetime.strptime(o["time"], "%H:%M") for o in (output, again))  # noqa: DTZ007 - times of day
    minutes = (now - then).seconds // 60
    same_place = output["city"] == again["city"] and output["offset"] == again["offset"]
    return same_place and minutes <= _CLOCK_SLACK_MINUTES
