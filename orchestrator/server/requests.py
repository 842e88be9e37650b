"""What a client may send: one struct per request body, and the texts for what does not fit.

Owns the limits and types of the specification's request schemas, strictly: an unknown field, a wrong type
or a number out of range is a 400 that names the parameter. Knows nothing of HTTP and looks nothing up.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestrator.protocol.objects import JSON
from orchestrator.server.refusal import RefusalError, invalid, not_found

__all__ = [
    "CreateAssistant",
    "CreateMessage",
    "CreateRun",
    "CreateThread",
    "CreateThreadAndRun",
    "ModifyAssistant",
    "ModifyMetadata",
    "ModifyThread",
    "SubmitToolOutputs",
    "decode",
    "given",
]

Metadata: TypeAlias = dict[str, str] | UnsetType | None
Resources: TypeAlias = JSON | UnsetType | None
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | UnsetType | None
Name: TypeAlias = Annotated[str, Meta(max_length=256)] | UnsetType | None
Description: TypeAlias = Annotated[str, Meta(max_length=512)] | UnsetType | None
Instructions: TypeAlias = Annotated[str, Meta(max_length=256_000)] | UnsetType | None
Temperature: TypeAlias = Annotated[float, Meta(ge=0, le=2)] | UnsetType | None
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)] | UnsetType | None
TokenLimit: TypeAlias = Annotated[int, Meta(ge=256)] | UnsetType | None
Format: TypeAlias = str | JSON | UnsetType | None
AssistantTools: TypeAlias = Annotated[list[JSON], Meta(max_length=128)]
RunTools: TypeAlias = Annotated[list[JSON], Meta(max_length=20)]


class _Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request body, or an object in one; a field that was not sent is `UNSET`."""


class CreateMessage(_Body):
    """`CreateMessageRequest`; also the items of `messages` and `additional_messages`."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[JSON], Meta(min_length=1)]
    attachments: list[JSON] | UnsetType | None = UNSET
    metadata: Metadata = UNSET


class CreateThread(_Body):
    """`CreateThreadRequest`."""

    messages: list[CreateMessage] = []
    tool_resources: Resources = UNSET
    metadata: Metadata = UNSET


class ModifyThread(_Body):
    """`ModifyThreadRequest`."""

    tool_resources: Resources = UNSET
    metadata: Metadata = UNSET


class ModifyMetadata(_Body):
    """`ModifyMessageRequest` and `ModifyRunRequest`."""

    metadata: Metadata = UNSET


class ModifyAssistant(_Body):
    """`ModifyAssistantRequest`."""

    model: str | UnsetType = UNSET
    name: Name = UNSET
    description: Description = UNSET
    instructions: Instructions = UNSET
    reasoning_effort: Effort = UNSET
    tools: AssistantTools | UnsetType = UNSET
    tool_resources: Resources = UNSET
    metadata: Metadata = UNSET
    temperature: Temperature = UNSET
    top_p: Share = UNSET
    response_format: Format = UNSET


class CreateAssistant(ModifyAssistant):
    """`CreateAssistantRequest`: as for a modification, with a model."""

    model: str


class _RunOptions(_Body):
    assistant_id: str
    model: str | UnsetType | None = UNSET
    instructions: Instructions = UNSET
    tools: RunTools | UnsetType | None = UNSET
    metadata: Metadata = UNSET
    temperature: Temperature = UNSET
    top_p: Share = UNSET
    stream: bool | UnsetType | None = UNSET
    max_prompt_tokens: TokenLimit = UNSET
    max_completion_tokens: TokenLimit = UNSET
    truncation_strategy: JSON | UnsetType | None = UNSET
    tool_choice: str | JSON | UnsetType | None = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    response_format: Format = UNSET


class CreateRun(_RunOptions):
    """`CreateRunRequest`."""

    reasoning_effort: Effort = UNSET
    additional_instructions: str | UnsetType | None = UNSET
    additional_messages: list[CreateMessage] | UnsetType | None = UNSET


class CreateThreadAndRun(_RunOptions):
    """`CreateThreadAndRunRequest`."""

    thread: CreateThread | UnsetType = UNSET
    tool_resources: Resources = UNSET


class ToolOutput(_Body):
    """One output; the specification lets both fields be absent, a call id is needed all the same."""

    tool_call_id: str
    output: str = ""


class SubmitToolOutputs(_Body):
    """`SubmitToolOutputsRunRequest`."""

    tool_outputs: list[ToolOutput]
    stream: bool | UnsetType | None = UNSET


class _Function(_Body):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | UnsetType = UNSET
    parameters: JSON | UnsetType = UNSET
    strict: bool | UnsetType | None = UNSET


class _FunctionTool(_Body):
    type: Literal["function"]
    function: _Function


class _TextPart(_Body, tag_field="type", tag="text"):
    text: str


class _ImageFile(_Body):
    file_id: str
    detail: Literal["auto", "low", "high"] = "auto"


class _ImageFilePart(_Body, tag_field="type", tag="image_file"):
    image_file: _ImageFile


class _ImageUrl(_Body):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class _ImageUrlPart(_Body, tag_field="type", tag="image_url"):
    image_url: _ImageUrl


class _Resources(_Body):
    """Which files and stores the hosted tools may use; only an empty object can be served."""

    code_interpreter: JSON | UnsetType = UNSET
    file_search: JSON | UnsetType = UNSET


class _Truncation(_Body):
    type: Literal["auto", "last_messages"]
    last_messages: Annotated[int, Meta(ge=1)] | None = None


class _JsonSchema(_Body):
    name: str
    description: str | UnsetType = UNSET
    schema: JSON | UnsetType = UNSET
    strict: bool | UnsetType | None = UNSET


class _TextFormat(_Body, tag_field="type", tag="text"):
    pass


class _ObjectFormat(_Body, tag_field="type", tag="json_object"):
    pass


class _SchemaFormat(_Body, tag_field="type", tag="json_schema"):
    json_schema: _JsonSchema


class _ChosenFunction(_Body):
    name: str


class _FunctionChoice(_Body):
    type: Literal["function"]
    function: _ChosenFunction


_Part: TypeAlias = _TextPart | _ImageFilePart | _ImageUrlPart
_ResponseFormat: TypeAlias = Literal["auto"] | _TextFormat | _ObjectFormat | _SchemaFormat
_ToolChoice: TypeAlias = Literal["none", "auto", "required"] | _FunctionChoice

B = TypeVar("B", bound=_Body)


def decode(body: bytes, kind: type[B]) -> B:
    """Turn a request's bytes into its struct, checked in full; an empty body counts as `{}`.

    Raises:
        RefusalError: 400, naming the parameter at fault.
    """
    try:
        request = msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("We could not parse the JSON body of your request: it is not valid JSON.") from None
    _check(request, "")
    return request


def given(request: msgspec.Struct, *without: str) -> JSON:
    """Return the fields that were sent, as plain JSON, without the named ones."""
    plain = msgspec.to_builtins(request)
    return {name: value for name, value in plain.items() if name not in without}


def _check(request: _Body, prefix: str) -> None:
    """Apply what msgspec's types cannot say; each field by the name it has everywhere."""
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if value is UNSET or value is None:
            continue
        where = f"{prefix}{name}"
        if isinstance(value, CreateThread):
            _check(value, f"{where}.")
        elif name in ("messages", "additional_messages"):
            for index, message in enumerate(value):
                _check(message, f"{where}[{index}].")
        elif name in _CHECKS:
            _CHECKS[name](value, where)


def _check_metadata(metadata: dict[str, str], where: str) -> None:
    if len(metadata) > 16:
        raise invalid(f"Invalid '{where}': at most 16 pairs are allowed, got {len(metadata)}.", where)
    for key, value in metadata.items():
        if len(key) > 64:
            raise invalid(
                f"Invalid '{where}': a key has {len(key)} characters, at most 64 are allowed.", where
            )
        if len(value) > 512:
            text = (
                f"Invalid '{where}': the value of a key has {len(value)} characters, at most 512 are allowed."
            )
            raise invalid(text, where)


def _check_tools(tools: list[JSON], where: str) -> None:
    for index, tool in enumerate(tools):
        path = f"{where}[{index}]"
        _check_hosted(tool, path)
        _convert(tool, _FunctionTool, path)


def _check_hosted(tool: JSON, where: str) -> None:
    if tool.get("type") in ("code_interpreter", "file_search"):
        raise invalid(f"Tool type '{tool['type']}' is not supported by this server.", f"{where}.type")


def _check_resources(resources: JSON, where: str) -> None:
    _convert(resources, _Resources, where)
    if any(resources.values()):
        raise invalid(
            f"'{where}' belongs to code_interpreter and file_search, which this server does not support.",
            where,
        )


def _check_attachments(attachments: list[JSON], where: str) -> None:
    if attachments:
        raise invalid(f"'{where}' needs file storage, which this server does not have.", where)


def _check_content(content: str | list[JSON], where: str) -> None:
    if isinstance(content, list):
        for index, part in enumerate(content):
            _convert(part, _Part, f"{where}[{index}]")


def _check_truncation(strategy: JSON, where: str) -> None:
    if _convert(strategy, _Truncation, where).type == "last_messages" and not strategy.get("last_messages"):
        raise invalid(f"Missing required parameter: '{where}.last_messages'.", f"{where}.last_messages")


def _check_format(value: str | JSON, where: str) -> None:
    _convert(value, _ResponseFormat, where)


def _check_choice(choice: str | JSON, where: str) -> None:
    if isinstance(choice, dict):
        _check_hosted(choice, where)
    _convert(choice, _ToolChoice, where)


def _check_assistant_id(assistant_id: str, _where: str) -> None:
    if "\0" in assistant_id:  # No id holds one, and not every database can be asked for it.
        raise not_found("assistant", assistant_id)


_CHECKS: dict[str, Any] = {
    "assistant_id": _check_assistant_id,
    "attachments": _check_attachments,
    "content": _check_content,
    "metadata": _check_metadata,
    "response_format": _check_format,
    "tool_choice": _check_choice,
    "tool_resources": _check_resources,
    "tools": _check_tools,
    "truncation_strategy": _check_truncation,
}


def _convert(value: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), where) from None


_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"^Object (?P<kind>contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL)


def _refusal(text: str, prefix: str = "") -> RefusalError:
    """Word msgspec's message, whose form is `what - at `$.path``, as the protocol words such things."""
    found = _AT.match(text)
    assert found is not None
    # msgspec writes `[...]` for any key of an object; the parameter is the object.
    what, path = found["what"], (prefix + (found["path"] or "")).replace("[...]", "").lstrip(".")
    field = _FIELD.match(what)
    if field is None:
        named = f" for '{path}'" if path else ""
        return invalid(f"Invalid value{named}: {what[0].lower()}{what[1:]}.".replace("`", "'"), path or None)
    param = f"{path}.{field['name']}".lstrip(".")
    unknown = field["kind"] == "contains unknown"
    return invalid(f"{'Unknown' if unknown else 'Missing required'} parameter: '{param}'.", param)
