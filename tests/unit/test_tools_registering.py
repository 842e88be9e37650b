"""What may be registered, what an assistant and a registry have in common, and what unknown names get."""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any, Literal

import pytest
from binding import bind
from pydantic import BaseModel, Field
from tool_signatures import CONTEXT, ROWS, Address, Colour, Node, Numbers, Period, taking

from orchestrator.protocol.objects import Assistant
from orchestrator.tools import RunTools, SchemaDifference, Tool, ToolCheck, ToolContext, ToolRegistry, tool
from orchestrator.tools.arguments import InvalidArguments
from orchestrator.tools.comparison import compared
from orchestrator.tools.outcome import unknown_tool


class Desk:
    """Two tools and a method that is none."""

    def __init__(self, name: str) -> None:
        self.name = name

    @tool
    def book(self, city: str) -> str:
        """Book a room."""
        return f"{self.name}: {city}"

    @tool(name="ask", timeout_s=5)
    async def question(self, text: str) -> str:
        return text

    def helper(self, number: int) -> int:
        return number


class NightDesk(Desk):
    @tool
    def wake(self, hour: int) -> str:
        return f"{self.name} at {hour}"

    def question(self, text: str) -> str:  # type: ignore[override]  # no tool any more: that is the case
        return text


def spare(number: int) -> int:
    return number


def test_an_object_stands_for_its_methods_that_are_tools() -> None:
    registry = ToolRegistry([Desk("North"), spare])
    assert registry.names == ("book", "ask", "spare")
    book, ask = registry.get("book"), registry.get("ask")
    assert book is not None
    assert ask is not None
    assert book("Oslo") == "North: Oslo"
    assert list(book.parameters["properties"]) == ["city"]
    assert (ask.options.timeout_s, ask.is_async) == (5, True)


def test_a_subclass_adds_tools_and_takes_them_back() -> None:
    assert ToolRegistry([NightDesk("South")]).names == ("book", "wake")


def test_a_class_with_tools_is_refused_with_the_hint_to_give_an_object() -> None:
    with pytest.raises(TypeError, match=r"give an object, Desk\(…\)"):
        ToolRegistry([Desk])


def test_an_object_without_tools_is_refused() -> None:
    with pytest.raises(TypeError, match="a tool is made of a function"):
        ToolRegistry([object()])


def test_register_is_a_decorator() -> None:
    registry = ToolRegistry()

    @registry.register
    def double(number: int) -> int:
        return 2 * number

    assert registry.get("double") is double
    assert double(2) == 4


def test_a_partial_of_a_tool_is_a_tool_with_less_to_say() -> None:
    @tool
    def book(city: str, nights: int, *, pets: bool = False) -> str:
        return f"{city} {nights} {pets}"

    made = tool(name="weekend")(functools.partial(book, nights=2))
    positional, named = bind(made.described, '{"city": "Oslo", "pets": true}', CONTEXT)
    assert made(*positional, **named) == "Oslo 2 True"


# A model as the only argument


def plan(period: Period, context: ToolContext) -> Any:
    """Plan."""
    return period, context


def test_a_model_that_is_the_only_argument_is_the_arguments_object() -> None:
    made: Tool[..., Any] = tool(plan)
    assert made.parameters == {
        "type": "object",
        "description": "From one day to another.",
        "properties": {
            "from": {"type": "string", "format": "date"},
            "end": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
        },
        "required": ["from"],
        "additionalProperties": False,
    }
    positional, named = bind(made.described, '{"from": "2026-01-31"}', CONTEXT)
    period, context = made(*positional, **named)
    assert (period.start.day, period.end, context) == (31, None, CONTEXT)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{}", "from: Field required"),
        ('{"period": {"from": "2026-01-31"}}', "period: Extra inputs are not permitted"),
        ('{"from": "2026-01-31", "end": "2026-01-01"}', "Value error, it ends before it starts"),
    ],
)
def test_the_models_own_rules_answer_for_it(document: str, said: str) -> None:
    with pytest.raises(InvalidArguments, match=said):
        bind(tool(plan).described, document, CONTEXT)


def with_note(address: Annotated[Address, Field(description="A note.")], /) -> str:
    return address.street


def recursive(node: Node) -> int:
    return len(node.children)


def test_annotated_and_recursive_models_are_the_arguments_object_too() -> None:
    assert bind(tool(with_note).described, '{"street": "S"}', CONTEXT) == ([Address(street="S")], {})
    made = tool(recursive)
    assert (made.parameters["type"], list(made.parameters["properties"])) == ("object", ["children"])
    assert bind(made.described, '{"children": [{}]}', CONTEXT) == ([], {"node": Node(children=[Node()])})


def by_default(address: Address = Address(street="S")) -> str:  # noqa: B008 - that is the case
    return address.street


def listed(numbers: Numbers) -> int:
    return len(numbers.root)


def two(one: Address, other: Address) -> str:
    return one.street + other.street


@pytest.mark.parametrize(
    ("function", "names"), [(by_default, ["address"]), (listed, ["numbers"]), (two, ["one", "other"])]
)
def test_a_model_with_a_default_or_company_or_no_fields_is_a_property(
    function: Any, names: list[str]
) -> None:
    assert list(tool(function).parameters["properties"]) == names


def test_a_context_is_recognised_below_annotated() -> None:
    def look(city: str, context: Annotated[ToolContext, "a remark"]) -> None:
        """Look."""

    assert list(tool(look).parameters["properties"]) == ["city"]


def test_a_literal_of_an_enums_members_is_refused_because_no_argument_could_satisfy_it() -> None:
    def paint(colour: Literal[Colour.RED]) -> None:
        """Paint."""

    with pytest.raises(TypeError, match=r"tool 'paint': parameter 'colour'.*the Enum itself"):
        ToolRegistry([paint])


# Assistants and registries


class Item(BaseModel):
    sku: str
    count: int = 1


def order(items: list[Item], urgent: bool = False, unit: Literal["kg", "t"] | None = None) -> None:
    """Order."""


def assistant(*functions: dict[str, Any]) -> Assistant:
    tools = [{"type": "function", "function": function} for function in functions]
    return Assistant(id="asst_1", tools=[{"type": "file_search"}, *tools])


def changed(**changes: Any) -> dict[str, Any]:
    parameters = json.loads(json.dumps(tool(order).parameters))
    parameters["properties"] |= changes
    return {"name": "order", "parameters": parameters}


def test_an_assistant_made_of_the_registrys_definitions_agrees_with_it() -> None:
    registry = ToolRegistry([order, recursive, plan, two, spare])
    made = Assistant(id="asst_1", tools=registry.definitions())
    report = registry.check(made)
    assert report == ToolCheck()
    assert report
    assert str(report) == "every function of the assistant has its handler"
    assert ToolRegistry([*registry, tool(name="more")(spare)]).check(made)


def test_every_kind_of_schema_agrees_with_itself() -> None:
    tools = [tool(name=f"t{n}")(taking(row.annotation, row.default)) for n, row in enumerate(ROWS)]
    registry = ToolRegistry(tools)
    assert str(registry.check(Assistant(id="a", tools=registry.definitions()))) == str(ToolCheck())


def test_functions_without_a_handler_are_named() -> None:
    report = ToolRegistry([order]).check(assistant(changed(), {"name": "refund"}, {"name": "cancel"}))
    assert report == ToolCheck(without_handler=("refund", "cancel"))
    assert not report
    assert str(report).startswith("refund: no function is registered under this name\n")


def test_of_a_runs_own_tools_the_definitions_are_named_that_no_function_answers() -> None:
    def look(word: str) -> str:
        return word

    def book(word: str) -> str:
        return word

    definition = ToolRegistry([book]).definitions()[0]
    nobody = {"type": "function", "function": {"name": "nobody"}}
    given = RunTools.given([look, {"type": "file_search"}, definition, nobody], ToolRegistry([book]))
    assert given.sent == (*ToolRegistry([look]).definitions(), {"type": "file_search"}, definition, nobody)
    assert given.registry.names == ("book", "look")
    assert given.without_handler == ("nobody",)
    assert RunTools.given(None, ToolRegistry([book])).without_handler == ()


def test_the_same_schema_in_other_words_is_no_difference() -> None:
    by_hand = {
        "name": "order",
        "description": "Mine.",
        "parameters": {
            "type": "object",
            "required": ["items"],
            "properties": {
                "unit": {"type": ["string", "null"], "enum": ["t", "kg", None], "description": "Unit."},
                "urgent": {"type": "boolean"},
                "items": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"count": {"type": "integer"}, "sku": {"type": "string"}},
                        "required": ["sku"],
                    },
                },
            },
        },
    }
    assert str(ToolRegistry([order]).check(assistant(by_hand))) == str(ToolCheck())


@pytest.mark.parametrize(
    ("function", "how"),
    [
        (changed(urgent={"type": "string"}), "urgent type: the assistant says string, the function boolean"),
        (changed(town={"type": "string"}), "town: only the assistant knows it"),
        (changed(items={"type": "array", "items": {"type": "string"}}), "items[] type: the assistant says"),
        (changed(urgent={"type": "boolean", "default": True}), "urgent default: the assistant says true"),
        ({"name": "order"}, "items: only the function knows it"),
        ({"name": "order", "parameters": {"$ref": "#/nowhere"}}, "unknown: the assistant says #/nowhere"),
    ],
)
def test_a_schema_that_differs_is_named_with_how(function: dict[str, Any], how: str) -> None:
    (found,) = ToolRegistry([order]).check(assistant(function)).different
    assert found.name == "order"
    assert any(line.startswith(how) for line in found.how), found.how


def test_what_is_required_on_one_side_only_is_a_difference() -> None:
    function = changed()
    function["parameters"]["required"] = ["items", "urgent"]
    assert ToolRegistry([order]).check(assistant(function)).different == (
        SchemaDifference(name="order", how=("urgent: the assistant says required, the function optional",)),
    )


# Names that nobody registered


def test_an_unknown_tool_is_answered_with_the_known_names() -> None:
    assert unknown_tool("c", ["a", "b"]) == "there is no tool named 'c'; the known tools: a, b"
    assert unknown_tool("c", []).endswith("the known tools: none")
    assert len(unknown_tool("x" * 10_000, [])) < 300


def test_a_made_up_wrapper_of_several_calls_is_told_what_to_do_instead() -> None:
    said = unknown_tool("multi_tool_use.parallel", ["a", "b"])
    assert said == (
        "'multi_tool_use.parallel' is no tool; call each tool by itself, several at once if you like: a, b"
    )


class Counter:
    """Marks its members in either order."""

    @staticmethod
    @tool
    def below_static(number: int) -> int:
        return number

    @tool
    @staticmethod
    def above_static(number: int) -> int:
        return number

    @classmethod
    @tool
    def below_class(cls, number: int) -> str:
        return f"{cls.__name__} {number}"

    @tool
    @classmethod
    def above_class(cls, number: int) -> str:
        return f"{cls.__name__} {number}"


def test_static_and_class_methods_are_tools_in_either_order_of_the_decorators() -> None:
    registry = ToolRegistry([Counter()])
    assert set(registry.names) == {"below_static", "above_static", "below_class", "above_class"}
    for made in registry:
        assert made.parameters["required"] == ["number"]
        assert made(number=3) == (3 if made.name.endswith("static") else "Counter 3")


def _entangled(models: int, title: str) -> dict[str, Any]:
    names = [f"M{number}" for number in range(models)]
    definitions = {
        name: {
            "type": "object",
            "properties": {f"to_{to}": {"$ref": f"#/$defs/{to}"} for to in names if to != name},
        }
        for name in names
    }
    return {
        "type": "object",
        "title": title,
        "properties": {"a": {"$ref": "#/$defs/M0"}},
        "$defs": definitions,
    }


@pytest.mark.parametrize(("models", "agree"), [(4, True), (12, False)])
def test_models_that_refer_to_each_other_are_compared_as_far_as_that_is_cheap(
    models: int, agree: bool
) -> None:
    theirs, ours = (_entangled(models, title) for title in ("theirs", "ours"))
    function = {"name": "f", "parameters": theirs}
    found = compared([{"type": "function", "function": function}], {"f": ours})
    assert bool(found) is agree
    assert agree or "in too many ways to compare them" in str(found)
    function["parameters"] = ours
    assert compared([{"type": "function", "function": function}], {"f": ours})
