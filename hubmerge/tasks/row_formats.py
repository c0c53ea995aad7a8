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
from hubmerge.tasks.messages import Message, check_order, common_turns, parse_messages


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

    `has_tools` is whether tools, which are ignored, were left out of it.
    """

    messages: tuple[Message, ...]
    first: int = 0
    has_tools: bool = False


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


def _conversation(values: Mapping[str, Any], key: str, location: str) -> ChatExample:
    messages, has_tools = parse_messages(values[key], f"the {key} of {location}")
    system = values.get("system")
    if isinstance(system, str) and system.strip() and messages[:1] and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return _checked(messages, 0, has_tools or bool(values.get("tools")), location)


def _completion(
    values: Mapping[str, Any], chat: bool, location: str
) -> TargetExample | ChatExample:
    if isinstance(values["prompt"], str):
        prompt, target = (_text(values, key, location) for key in ("prompt", "completion"))
        return question_and_answer(prompt, target, chat)
    prompt_turns, in_prompt = parse_messages(values["prompt"], f"the prompt of {location}")
    answers, in_answer = parse_messages(values["completion"], f"the completion of {location}")
    has_tools = in_prompt or in_answer or bool(values.get("tools"))
    return _checked((*prompt_turns, *answers), len(prompt_turns), has_tools, location)


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
    messages, has_tools = parse_messages(chosen, f"the chosen answer of {location}")
    has_tools = has_tools or bool(values.get("tools"))
    if messages[:1] and messages[0].role == "assistant":  # the prompt is apart
        if isinstance(prompt, str):
            before: tuple[Message, ...] = (Message("user", prompt),)
        else:
            before, _ = parse_messages(prompt, f"the prompt of {location}")
        return _checked((*before, *messages), len(before), has_tools, location)
    first = len(messages) - 1
    if rejected is not None:
        others, _ = parse_messages(rejected, f"the rejected answer of {location}")
        first = min(first, common_turns(messages, others))
    return _checked(messages, first, has_tools, location)


def _instruction(
    values: Mapping[str, Any], chat: bool, location: str
) -> TargetExample | ChatExample:
    instruction, target = (_text(values, key, location) for key in ("instruction", "output"))
    more = values.get("input") or ""
    if chat:
        return question_and_answer("\n\n".join(filter(None, (instruction, more))), target, chat)
    template = _ALPACA_WITH_INPUT if more else _ALPACA
    return TargetExample(template.format(instruction, more), target)


def _checked(
    messages: tuple[Message, ...], first: int, has_tools: bool, location: str
) -> ChatExample:
    check_order(messages, location)
    if all(message.role != "assistant" for message in messages[first:]):
        raise DataError(f"{location} has no answer to learn", "Mend or remove the row.")
    return ChatExample(messages, first, has_tools)


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
