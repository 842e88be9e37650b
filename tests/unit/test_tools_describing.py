"""Names, registries, strict mode and the errors that a model gets for its arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, assert_type

import pytest
from binding import bind
from pydantic import AfterValidator, BaseModel, Field

from orchestrator.tools import Tool, ToolContext, ToolRegistry, tool
from orchestrator.tools.arguments import InvalidArguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTEXT = ToolContext(run_id="run_1", thread_id="thread_1", call_id="call_1", tool="t")


def no_docstring(a: int) -> int:
    return a


def test_a_tool_without_a_docstring_has_no_description_on_the_wire() -> None:
    assert tool(no_docstring).description == ""
    assert "description" not in tool(no_docstring).definition()["function"]


class Adder:
    def __call__(self, a: int) -> int:
        return a + 1


def test_a_callable_object_needs_a_name_and_is_not_described_by_pythons_own_words() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        tool(Adder())
    assert tool(name="add")(Adder()).definition() == {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize("name", ["", "a b", "é", "a.b", "x" * 65, "a\n"])
def test_a_name_the_protocol_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="tool name"):
        tool(name=name)(no_docstring)


def test_a_lambda_has_no_usable_name() -> None:
    with pytest.raises(ValueError, match="<lambda>"):
        tool(lambda: 1)


@pytest.mark.parametrize("thing", ["fetch", 5, {"type": "function"}])
def test_what_is_no_function_is_refused_as_such(thing: Any) -> None:
    for take in (tool, lambda thing: ToolRegistry([thing]), ToolRegistry().register):
        with pytest.raises(TypeError, match="a tool is made of a function, not of"):
            take(thing)


def test_a_function_where_a_list_of_them_belongs_is_told_so() -> None:
    tools: Any = no_docstring
    for take in (ToolRegistry, ToolRegistry().merged):
        with pytest.raises(TypeError, match=r"in a list: \[no_docstring\]"):
            take(tools)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_timeout_must_be_positive(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        tool(timeout_s=timeout_s)(no_docstring)


def test_a_tool_stays_the_function_it_was_for_callers_and_type_checkers() -> None:
    @tool
    def double(number: int, *, times: int = 1) -> float:
        """Double it."""
        return 2.0 * number * times

    assert_type(double(2, times=3), float)
    assert double(2, times=3) == 12.0
    assert (getattr(double, "__name__", None), double.__doc__) == ("double", "Double it.")
    assert (double.options.timeout_s, double.options.idempotent, double.options.strict, double.is_async) == (
        60.0,
        False,
        False,
        False,
    )


def test_coroutine_functions_are_recognised_below_partials_methods_and_objects() -> None:
    class Service:
        async def fetch(self, key: str) -> str:
            return key

        async def __call__(self, key: str) -> str:
            return key

    async def fetch(key: str) -> str:
        return key

    assert tool(fetch).is_async
    assert tool(partial(fetch, key="a")).is_async
    assert tool(Service().fetch).is_async
    assert tool(name="service")(Service()).is_async
    assert not tool(no_docstring).is_async


def test_the_context_class_need_not_be_imported_at_run_time() -> None:
    source = "from __future__ import annotations\ndef look(a: int, context: ToolContext) -> None: ..."
    module: dict[str, Any] = {}
    exec(source, module)
    assert list(tool(module["look"]).parameters["properties"]) == ["a"]


def test_a_generator_is_refused_at_registration() -> None:
    def numbers(until: int) -> Iterator[int]:
        yield from range(until)

    with pytest.raises(TypeError, match="'numbers' is a generator"):
        ToolRegistry([numbers])


def test_a_registry_finds_lists_and_refuses_a_second_tool_of_the_same_name() -> None:
    registry = ToolRegistry([no_docstring])
    added = registry.register(tool(name="other")(no_docstring))
    assert isinstance(added, Tool)
    assert registry.names == ("no_docstring", "other")
    assert registry.get("other") is added
    assert registry.get("third") is None
    assert "other" in registry
    assert "third" not in registry
    assert len(registry) == 2
    assert (repr(registry), repr(added)) == ("<ToolRegistry no_docstring, other>", "<Tool 'other'>")
    assert [made.name for made in registry] == ["no_docstring", "other"]
    assert [d["function"]["name"] for d in registry.definitions()] == ["no_docstring", "other"]
    with pytest.raises(ValueError, match="'other' is registered already"):
        registry.register(tool(name="other")(no_docstring))
    with pytest.raises(ValueError, match="registered already"):
        ToolRegistry([no_docstring, no_docstring])


def test_the_tools_of_one_run_shadow_the_registered_ones_and_leave_those_alone() -> None:
    registry = ToolRegistry([no_docstring, tool(name="b")(no_docstring)])
    mine = tool(name="b", description="Mine.")(no_docstring)
    merged = registry.merged([mine, tool(name="c")(no_docstring)])
    assert merged.names == ("no_docstring", "b", "c")
    assert merged.get("b") is mine
    assert registry.get("b") is not mine
    assert "c" not in registry
    with pytest.raises(ValueError, match="registered already"):
        registry.merged([mine, mine])


# Strict mode


class Item(BaseModel):
    sku: str
    count: int = 1


class Tree(BaseModel):
    children: list[Tree] = []


def order(
    items: list[Item], first: Annotated[Item, Field(description="The first.")], note: str | None = None
) -> None:
    """Order."""


def grow(tree: Tree) -> None:
    """Grow."""


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


def adopt(pet: Annotated[Cat | Dog, Field(discriminator="kind")]) -> None:
    """Adopt."""


def test_a_tagged_union_is_a_plain_one_in_a_strict_schema() -> None:
    assert tool(strict=True)(adopt).parameters["properties"]["pet"] == {
        "anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]
    }


def every_object(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from every_object(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from every_object(part)


@pytest.mark.parametrize("function", [order, grow, no_docstring])
def test_a_strict_schema_requires_every_property_and_allows_no_other(function: Callable[..., Any]) -> None:
    schema = tool(strict=True)(function).parameters
    objects = list(every_object(schema))
    assert objects
    for found in objects:
        assert found["additionalProperties"] is False
        assert found["required"] == list(found["properties"])
    assert '"default"' not in json.dumps(schema)


def test_a_described_reference_stands_alone_in_a_strict_schema() -> None:
    assert tool(strict=True)(order).parameters["properties"]["first"] == {
        "anyOf": [{"$ref": "#/$defs/Item"}],
        "description": "The first.",
    }


def any_mapping(options: dict[str, int]) -> None:
    pass


def anything(value: Any) -> None:
    pass


def fixed_tuple(pair: tuple[int, str]) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "name"), [(any_mapping, "options"), (anything, "value"), (fixed_tuple, "pair")]
)
def test_what_strict_mode_cannot_express_is_refused_by_name(function: Callable[..., Any], name: str) -> None:
    ToolRegistry([function])
    with pytest.raises(TypeError, match=rf"tool '{function.__name__}': arguments\.{name}"):
        ToolRegistry([tool(strict=True)(function)])


# What a model gets back for wrong arguments


def must_be_even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


def explodes(value: int) -> int:
    raise KeyError(value)


class Line(BaseModel):
    sku: str
    count: int


def buy(
    lines: list[Line],
    even: Annotated[int, AfterValidator(must_be_even)] = 2,
    bad: Annotated[int, AfterValidator(explodes)] = 0,
) -> None:
    pass


SECRET = "x" * 5000


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('{"lines": [', "Invalid JSON: EOF while parsing a list at line 1 column 11"),
        ('{"lines": []} trailing', "Invalid JSON: trailing characters at line 1 column 15"),
        ("[" * 5000, "Invalid JSON: recursion limit exceeded"),
        ("[]", "Input should be an object"),
        ("{}", "lines: Field required"),
        ('{"lines": [], "town": 1}', "town: Extra inputs are not permitted"),
        ('{"lines": [{"sku": "a", "count": 1}, {"sku": "a"}]}', "lines[1].count: Field required"),
        ('{"lines": [{"sku": "a", "count": "many"}]}', "lines[0].count: Input should be a valid integer"),
        ('{"lines": [], "even": 3}', "even: Value error, must be even"),
        ('{"lines": [], "bad": 3}', "KeyError: 3"),
        ('{"lines": [{}, {}, {}, {}, {}, {}]}', "and 4 more"),
        ('{"lines": "\ud800"}', ""),
    ],
)
def test_wrong_arguments_are_answered_with_where_and_why(document: str, said: str) -> None:
    with pytest.raises(InvalidArguments) as caught:
        bind(tool(buy).described, document, CONTEXT)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 4000


def test_what_the_model_wrote_is_not_sent_back_to_it_at_length() -> None:
    for document in (
        json.dumps({SECRET: 1}),
        json.dumps({"lines": SECRET}),
        json.dumps({"lines": [{"sku": SECRET, "count": SECRET}]}),
    ):
        with pytest.raises(InvalidArguments) as caught:
            bind(tool(buy).described, document, CONTEXT)
        assert "x" * 250 not in str(caught.value)


def test_importing_the_package_loads_nothing_heavy_and_starts_no_thread() -> None:
    script = """
import sys, threading
import orchestrator.tools
heavy = {"pydantic", "griffe", "httpx", "structlog"} & set(sys.modules)
assert not heavy, heavy
@orchestrator.tools.tool
def f(a: int) -> int:
    return a
executor = orchestrator.tools.ToolExecutor()
heavy = {"pydantic", "griffe", "httpx", "structlog"} & set(sys.modules)
assert not heavy, heavy
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
