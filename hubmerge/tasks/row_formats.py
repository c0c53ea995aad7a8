"""Rows in the formats that data sets of conversations and instructions have.

Sources: TRL's data set formats (messages, prompt and completion, preference), ShareGPT, Stanford
Alpaca.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubmerge.errors import DataError
from hubmerge.specs import TaskSpec
from hubmerge.tasks.messages import (
    Message,
    ParsedMessages,
    check_order,
    common_turns,
    parse_messages,
)


@dataclass(frozen=True)
class RowFormat:
    """The columns of a format: those that every row has, and those that are used if they exist."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


ROW_FORMATS = {
    "messages": RowFormat(("messages",), ("system", "tools")),
    "conversations": RowFormat(("conversations",), ("system", "tools")),
    "completion": RowFormat(("prompt", "completion"), ("tools",)),
    "preference": RowFormat(("chosen",), ("prompt", "rejected", "tools")),
    "alpaca": RowFormat(("instruction", "output"), ("input",)),
    "text": RowFormat(("text",)),
}
# The prompts of Stanford Alpaca (Apache-2.0), as in the column `text` of its data set.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{0}\n\n### Response:\n"
)
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n{0}"
    "\n\n### Input:\n{1}\n\n### Response:\n"
)


@dataclass(frozen=True)
class TargetExample:
    """A prompt and the text that should follow it."""

    prompt: str
    target: str


@dataclass(frozen=True)
class ChatExample:
    """A conversation; the answers from message number `first` on are targets.

    `has_tools` is whether tools, which are ignored, were left out of it. `shape` is the key of
    roles in the row that it was read from, or `text`.
    """

    messages: tuple[Message, ...]
    first: int = 0
    has_tools: bool = False
    shape: str = "text"


@dataclass(frozen=True)
class TextExample:
    """A text that is a target from its first token on."""

    text: str


FormatExample = TargetExample | ChatExample | TextExample


def columns_of_format(spec: TaskSpec) -> tuple[dict[str, str], dict[str, str]]:
    """Key -> column of the required, and of the optional columns of a task's format."""
    row_format, renamed = ROW_FORMATS[str(spec.format)], spec.data.columns or {}
    required = {key: renamed.get(key, key) for key in row_format.required}
    return required, {key: renamed.get(key, key) for key in row_format.optional}


def example_of_row(spec: TaskSpec, row: Mapping[str, Any], location: str) -> FormatExample:
    """The example of a row; DataError names the row by `location`, such as "train row 3"."""
    required, optional = columns_of_format(spec)
    values = {key: row.get(column) for key, column in (required | optional).items()}
    for key, column in required.items():
        if values[key] is None:
            raise DataError(
                f"{location} has no `{column}`",
                f"Every row of `format: {spec.format}` has it; put rows of other shapes into a "
                "task of their own.",
            )
    if spec.format in ("messages", "conversations"):
        return _conversation(values, str(spec.format), location)
    if spec.format == "completion":
        return _completion(values, spec.chat, location)
    if spec.format == "preference":
        return _preference(values, spec.chat, location)
    if spec.format == "alpaca":
        return _instruction(values, spec.chat, location)
    return TextExample(_text(values, "text", location))


def question_and_answer(prompt: str, target: str, chat: bool) -> TargetExample | ChatExample:
    """A prompt and its target as texts, or as turns of the tokenizer's chat template."""
    return chat_of(prompt, target) if chat else TargetExample(prompt, target)


def chat_of(prompt: str, answer: str) -> ChatExample:
    """A conversation of one question and its answer."""
    return ChatExample((Message("user", prompt), Message("assistant", answer)))


def shape_of(example: object) -> str:
    """Which of the shapes that a format allows a row has; those of one task are equal."""
    return example.shape if isinstance(example, ChatExample) else "text"


def describe_shapes(row_of_shape: Mapping[str, str]) -> str:
    """A sentence about rows of several shapes: shape -> a row that has it."""
    words = {"text": "text", "role": "messages with `role`", "from": "messages with `from`"}
    rows = " and ".join(f"{words[shape]} ({row})" for shape, row in row_of_shape.items())
    return f"its rows are mixed: {rows}"


def _conversation(values: Mapping[str, Any], key: str, location: str) -> ChatExample:
    parsed = parse_messages(values[key], f"the {key} of {location}")
    system, messages = values.get("system"), parsed.messages
    if isinstance(system, str) and system.strip() and messages[:1] and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    has_tools = parsed.has_tools or bool(values.get("tools"))
    return _checked(ChatExample(messages, 0, has_tools, parsed.shape), location)


def _completion(
    values: Mapping[str, Any], chat: bool, location: str
) -> TargetExample | ChatExample:
    if isinstance(values["prompt"], str):
        prompt, target = (_text(values, key, location) for key in ("prompt", "completion"))
        return question_and_answer(prompt, target, chat)
    before = parse_messages(values["prompt"], f"the prompt of {location}")
    after = parse_messages(values["completion"], f"the completion of {location}")
    return _joined(before, after, bool(values.get("tools")), location)


def _preference(
    values: Mapping[str, Any], chat: bool, location: str
) -> TargetExample | ChatExample:
    """The chosen answer; without a prompt, it is what both answers begin with."""
    chosen, rejected, prompt = (values.get(key) for key in ("chosen", "rejected", "prompt"))
    if isinstance(chosen, str):
        if prompt is None and isinstance(rejected, str):
            prompt = _common_words(chosen, rejected)
            chosen = chosen[len(prompt) :]
        texts = {"prompt": prompt, "chosen": chosen}
        prompt, target = (_text(texts, key, location) for key in ("prompt", "chosen"))
        return question_and_answer(prompt, target, chat)
    parsed, has_tools = _parse_chosen(chosen, location), bool(values.get("tools"))
    messages = parsed.messages
    if messages[:1] and messages[0].role == "assistant":  # the prompt is apart
        if isinstance(prompt, str):
            before = ParsedMessages((Message("user", prompt),), False, parsed.shape)
        else:
            before = parse_messages(prompt, f"the prompt of {location}")
        return _joined(before, parsed, has_tools, location)
    first = len(messages) - 1
    if rejected is not None:
        first = min(first, common_turns(messages, _parse_chosen(rejected, location).messages))
    has_tools = has_tools or parsed.has_tools
    return _checked(ChatExample(messages, first, has_tools, parsed.shape), location)


def _parse_chosen(value: Any, location: str) -> ParsedMessages:
    return parse_messages(value, f"the chosen and rejected answers of {location}")


def _joined(
    before: ParsedMessages, after: ParsedMessages, has_tools: bool, location: str
) -> ChatExample:
    """A conversation whose first messages are its prompt."""
    messages, first = (*before.messages, *after.messages), len(before.messages)
    has_tools = has_tools or before.has_tools or after.has_tools
    return _checked(ChatExample(messages, first, has_tools, after.shape), location)


def _instruction(
    values: Mapping[str, Any], chat: bool, location: str
) -> TargetExample | ChatExample:
    instruction, target = (_text(values, key, location) for key in ("instruction", "output"))
    more = values.get("input") or ""
    if chat:
        return question_and_answer("\n\n".join(filter(None, (instruction, more))), target, chat)
    template = _ALPACA_WITH_INPUT if more else _ALPACA
    return TargetExample(template.format(instruction, more), target)


def _checked(chat: ChatExample, location: str) -> ChatExample:
    check_order(chat.messages, location)
    if all(message.role != "assistant" for message in chat.messages[chat.first :]):
        raise DataError(f"{location} has no answer to learn", "Mend or remove the row.")
    return chat


def _text(values: Mapping[str, Any], key: str, location: str) -> str:
    value = values[key]
    if isinstance(value, list):
        raise DataError(
            f"the {key} of {location} is a list, but the rest of the row is text",
            "Write both as text, or both as lists of messages.",
        )
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"the {key} of {location} is empty", "Mend or remove the row.")
    return str(value)


def _common_words(one: str, other: str) -> str:
    """What two texts begin with, up to the end of a word."""
    pairs = enumerate(zip(one, other, strict=False))
    length = next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
    common = one[:length]
    return common[: max(map(common.rfind, " \n\t")) + 1]
