"""The rule engine's script format: what it plays, and what it says about mistakes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.server.models import (
    Call,
    CallPiece,
    Finish,
    ModelFailedError,
    ModelOutput,
    Prompt,
    Round,
    TextPiece,
    Turn,
)
from orchestrator.server.rules import RuleModel
from orchestrator.server.script import ScriptError, build, load, parse
from orchestrator.server.templates import fill, walk

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def usual_depth() -> Iterator[None]:
    """Python's own recursion limit, as in a server's process; other tests' tools raise it."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


def _prompt(text: str, *batches: list[str], **options: Any) -> Prompt:
    """A prompt after rounds whose calls returned these outputs."""
    rounds = tuple(
        Round(calls=tuple(Call(id=f"c{i}", name="t", arguments="{}", output=o) for i, o in enumerate(batch)))
        for batch in batches
    )
    fields: dict[str, Any] = {
        "model": "m",
        "instructions": "",
        "turns": (Turn(role="user", content=[{"type": "text", "text": {"value": text, "annotations": []}}]),),
        "rounds": rounds,
        "tools": ({"type": "function", "function": {"name": "t"}},),
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": None,
        "temperature": None,
        "top_p": None,
    }
    return Prompt(**fields | options)


def _outputs(rules: list[Any], prompt: Prompt) -> list[ModelOutput]:
    async def collect() -> list[ModelOutput]:
        return [output async for output in RuleModel(build(rules)).respond(prompt)]

    return asyncio.run(collect())


def _said(rules: list[Any], prompt: Prompt) -> str:
    return "".join(output.text for output in _outputs(rules, prompt) if isinstance(output, TextPiece))


def _called(rules: list[Any], prompt: Prompt) -> list[str]:
    arguments: dict[int, str] = {}
    for output in _outputs(rules, prompt):
        if isinstance(output, CallPiece):
            arguments[output.index] = arguments.get(output.index, "") + output.arguments
    return list(arguments.values())


def test_the_first_rule_that_matches_is_played() -> None:
    rules = [{"match": "b", "steps": [{"say": "B"}]}, {"match": "a|b", "steps": [{"say": "A"}]}]
    assert _said(rules, _prompt("a")) == "A"
    assert _said(rules, _prompt("ab")) == "B"


def test_without_a_match_the_answer_says_what_this_is_and_which_rules_there_are() -> None:
    said = _said([{"name": "greeting", "match": "hi", "steps": [{"say": "x"}]}], _prompt("what?"))
    assert "stand-in for a model" in said
    assert "greeting" in said
    assert "--script" in _said([], _prompt("what?"))


def test_named_groups_keep_the_types_they_are_given() -> None:
    rules = [
        {
            "match": r"(?P<n>\d+) (?P<x>[\d.]+) (?P<on>\w+) (?P<list>\[.*\])(?P<none>!)?",
            "types": {"n": "integer", "x": "number", "on": "boolean", "list": "json"},
            "steps": [
                {
                    "call": {
                        "tool": "t",
                        "arguments": {
                            "n": "{n}",
                            "x": ["{x}"],
                            "on": "{on}",
                            "l": "{list}",
                            "s": "n={n}",
                            "z": "{none}",
                        },
                    }
                }
            ],
        }
    ]
    assert _called(rules, _prompt("3 0.5 yes [1,2]")) == [
        '{"n":3,"x":[0.5],"on":true,"l":[1,2],"s":"n=3","z":null}'
    ]


@pytest.mark.parametrize("text", ["no json", "[" * 3000])
def test_what_is_not_the_type_it_should_be_stays_a_text(text: str) -> None:
    typed = {"match": "^(?P<x>.*)$", "types": {"x": "json"}, "steps": [{"say": "{x}"}]}
    assert _said([typed], _prompt(text)) == text


def test_an_output_that_is_nested_too_deeply_is_a_text() -> None:
    rule = {"match": "x", "steps": [{"call": {"tool": "t"}}, {"say": "{t}"}]}
    assert _said([rule], _prompt("x", ["[" * 100_000])) == "[" * 100_000


def test_outputs_are_found_by_alias_path_and_index() -> None:
    call = [{"tool": "t", "as": "one"}, {"tool": "t", "as": "two"}, {"tool": "t", "as": "two"}]
    say = "{one.a.1.b}; {two}; {two.c}; {{two}}"
    rules = [{"match": ".", "steps": [{"call": call}, {"say": say}]}]
    prompt = _prompt("x", ['{"a": [0, {"b": 1.5}]}', "plain", '{"c": null}'])
    assert _said(rules, prompt) == '1.5; plain, {"c":null}; [two.c is missing]; {two}'


def test_for_each_may_search_in_a_template_of_earlier_outputs() -> None:
    rules = [
        {
            "match": "go",
            "steps": [
                {"call": {"tool": "t", "as": "first"}},
                {
                    "call": {
                        "tool": "t",
                        "for_each": r"(?P<word>\w+)",
                        "over": "{first.words}",
                        "arguments": {"w": "{word}"},
                    }
                },
                {"say": "done"},
            ],
        }
    ]
    assert _called(rules, _prompt("go", ['{"words": "a b"}'])) == ['{"w":"a"}', '{"w":"b"}']
    assert _said(rules, _prompt("go", ['{"words": "a b"}'], ["1", "2"])) == "done"
    assert _said(rules, _prompt("go", ['{"words": ""}'])) == "done"


def test_a_rule_on_outputs_takes_over_from_the_one_that_called() -> None:
    rules = [
        {"match": "go", "steps": [{"call": {"tool": "t"}}, {"say": "fine"}]},
        {"match_output": "error: (?P<why>.*)", "steps": [{"say": "sorry, {why} ({t})"}]},
    ]
    assert _said(rules, _prompt("go", ["ok"])) == "fine"
    assert _said(rules, _prompt("go", ["error: no"])) == "sorry, no (error: no)"


def test_with_tool_choice_none_no_tool_is_called() -> None:
    rules = [{"match": "go", "steps": [{"call": {"tool": "t"}}, {"say": "got {t}"}]}]
    assert _said(rules, _prompt("go", tool_choice="none")) == "got [t is missing]"


def test_text_and_arguments_come_in_pieces_of_the_chosen_size() -> None:
    rules = [{"match": ".", "piece_chars": 3, "steps": [{"say": "abcdefg"}]}]
    assert _outputs(rules, _prompt("x")) == [
        TextPiece("abc"),
        TextPiece("def"),
        TextPiece("g"),
        Finish(reason="stop"),
    ]


def test_only_the_beginning_of_a_long_message_is_searched() -> None:
    rules = [{"match": "needle", "steps": [{"say": "found"}]}]
    assert _said(rules, _prompt("x" * 3994 + "needle")) == "found"
    assert "found" not in _said(rules, _prompt("x" * 3995 + "needle"))


def test_a_fail_step_carries_code_and_message() -> None:
    rules = [{"match": ".", "steps": [{"fail": {"code": "invalid_prompt", "message": "no"}}]}]
    with pytest.raises(ModelFailedError, match="no") as caught:
        _outputs(rules, _prompt("x"))
    assert caught.value.code == "invalid_prompt"


def test_templates_reach_names_and_nothing_else() -> None:
    def lookup(name: str, path: list[str]) -> Any:
        return walk({"a": {"b": [1]}, "s": "text"}[name], path)

    assert fill("{a.b.0} {s}", lookup) == "1 text"
    assert fill("{a.b}", lookup) == [1]
    for harmless in ("{s.__class__}", "{s.upper}", "{a.b.-1}", "{a.b.9}", "{x}"):
        assert fill(f"<{harmless}>", lookup) == f"<[{harmless.strip('{}')} is missing]>"
    for literal in ("{s!r}", "{s:>9}", "{s()}", "{}", "{0}", "{ s }"):
        assert fill(literal, lookup) == literal


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"steps": [{"say": "x"}]}, "give either `match` or `match_output`"),
        ({"match": "(", "steps": [{"say": "x"}]}, "is not a regular expression"),
        ({"match": "x", "steps": []}, "length >= 1"),
        ({"match": "x", "steps": [{"sing": "x"}]}, "unknown field `sing`"),
        ({"match": "x", "steps": [{"say": "x", "think_s": 1}]}, "step 1: give exactly one of"),
        (
            {"match": "x", "steps": [{"say": "{city}"}]},
            "nothing is called `city` here; there are: match, text",
        ),
        (
            {"match": "x", "steps": [{"call": {"tool": "t", "arguments": {"a": "{b}"}}}]},
            "nothing is called `b`",
        ),
        ({"match": "x", "steps": [{"say": "{t}"}, {"call": {"tool": "t"}}]}, "nothing is called `t`"),
        ({"match": "x", "steps": [{"say": [{"each": "t", "text": ""}]}]}, "`each: t` names no earlier call"),
        ({"match": "x", "steps": [{"call": {"tool": "t", "over": "{text}"}}]}, "`over` needs `for_each`"),
        ({"match": "x", "steps": [{"call": {}}]}, "missing required field `tool`"),
        ({"match": "x", "steps": [{"fail": {"code": "x", "message": "y"}}]}, "steps[0].fail.code"),
        ({"match": "x", "steps": [{"think_s": -1}]}, ">= 0"),
        ({"match": "x{99999999999}", "steps": [{"say": "x"}]}, "repetition number is too large"),
        ("x", "Expected `object`"),
    ],
)
def test_a_mistake_is_named_with_its_rule(rule: Any, text: str) -> None:
    good = {"match": "x", "steps": [{"say": "x"}]}
    with pytest.raises(ScriptError) as caught:
        build([good, rule if isinstance(rule, str) else {"name": "odd", **rule}], "my.yaml")
    assert str(caught.value).startswith("my.yaml: rule 2")
    assert text in str(caught.value)


def test_scripts_are_read_from_yaml_and_from_python(tmp_path: Path) -> None:
    yaml, python = tmp_path / "a.yaml", tmp_path / "b.py"
    yaml.write_text("rules:\n  - match: x\n    steps: [{say: y}]\n")
    python.write_text("rules = [{'match': w, 'steps': [{'say': w}]} for w in 'ab']\n")
    assert len(load(yaml).rules) == 1
    assert [rule.pattern.text for rule in load(python).rules] == ["a", "b"]


def test_an_emoji_escaped_as_json_does_it_is_one_character() -> None:
    rules = parse(r'rules: [{match: x, steps: [{say: "\ud83d\ude00"}]}]', "my.yaml")["rules"]
    assert _said(rules, _prompt("x")) == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.yaml", "rules: [", "is not YAML"),
        ("a.yaml", "rules: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("a.yaml", "rulez: []", "unknown field `rulez`"),
        ("a.py", "1/0", "ZeroDivisionError"),
        ("a.yaml", "rules: " + "[" * 2000, "nested too deeply"),
        (
            "a.yaml",
            "rules: [{match: x, steps: [{call: {tool: t, arguments: &a {b: *a}}}]}]",
            "contains itself",
        ),
        ("a.yaml", 'rules: [{match: x, steps: [{say: "\\ud83d"}]}]', "surrogates not allowed"),
        ("a.py", "x = 1", "does not define `rules`"),
        ("a.py", "import sys; sys.exit(0)", "SystemExit"),
        ("a.py", "import re; rules = [{'match': re.compile('x')}]", "holds what JSON cannot"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ScriptError) as caught:
        load(tmp_path / name)
    assert name in str(caught.value)
    assert problem in str(caught.value)
    with pytest.raises(ScriptError, match="cannot read the script"):
        load(tmp_path / f"missing-{name}")
