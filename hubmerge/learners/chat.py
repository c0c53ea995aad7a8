"""Conversations as text, by the chat template of a tokenizer, and which parts of it are answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from hubmerge.errors import DataError, UsageError
from hubmerge.refs import printable
from hubmerge.tasks.messages import Message


@dataclass(frozen=True)
class Answer:
    """Where an answer is in a text: characters `start` to `end`, with the token that ends it.

    `has_end` is whether there is such a token.
    """

    start: int
    end: int
    has_end: bool


@dataclass(frozen=True)
class ChatText:
    """A conversation as text, up to the end of its last answer."""

    text: str
    answers: tuple[Answer, ...]


def check_chat_template(tokenizer: Any, is_seq2seq: bool) -> None:
    """Raise UsageError for a model that conversations cannot be written for."""
    if is_seq2seq:
        raise UsageError(
            "Conversations need a decoder, and this model has an encoder, too.",
            "Give it prompts and answers: `kind: target` with `prompt:` and `target:`.",
        )
    if not tokenizer.chat_template:
        raise UsageError(
            "Conversations need a chat template, and the tokenizer of the base has none.",
            "Use the base's instruction-tuned version, put a chat_template.jinja into its folder, "
            "or give `prompt:` and `target:` in the task's YAML.",
        )


def write_chat(tokenizer: Any, messages: Sequence[Message], first: int, with_end: bool) -> ChatText:
    """The text of a conversation, and its answers from message number `first` on.

    An answer begins where the template would let the model begin, and ends with the token that the
    template writes after it, if there is one and `with_end`. Raises DataError for a conversation
    that the template refuses, or whose earlier turns it writes differently later on.
    """
    text = _apply(tokenizer, messages)
    numbers = [
        number
        for number, message in enumerate(messages)
        if message.role == "assistant" and number >= first
    ]
    starts = [len(_prompt(tokenizer, messages[:number], text)) for number in numbers]
    ends = [*starts[1:], len(text)]
    answers = tuple(
        _find_answer(tokenizer, text, messages[number].content.strip(), (start, end), with_end)
        for number, start, end in zip(numbers, starts, ends, strict=True)
    )
    return ChatText(text[: answers[-1].end], answers)


def write_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """What a model reads before it answers these messages; raises DataError as `write_chat`."""
    return _apply(tokenizer, messages, generation=True)


def _prompt(tokenizer: Any, messages: Sequence[Message], text: str) -> str:
    """What a model reads before an answer."""
    for generation in (True, False):
        prompt = _apply(tokenizer, messages, generation)
        if text.startswith(prompt):
            return prompt
    raise DataError(
        "The chat template writes the turns before an answer differently once it is given",
        "Give one answer in a row, or leave the system message out.",
    )


def _find_answer(
    tokenizer: Any, text: str, content: str, within: tuple[int, int], with_end: bool
) -> Answer:
    start, limit = within
    found_at = text.find(content, start, limit)
    if found_at < 0:
        raise DataError(
            f"The chat template does not write the answer {printable(content[:40])!r} as it is",
            "Mend or remove the row.",
        )
    end = found_at + len(content)
    rest = text[end:limit]
    after = rest.lstrip()
    endings = [token for token in tokenizer.added_tokens_encoder if after.startswith(token)]
    if not endings or not with_end:
        return Answer(start, end, has_end=False)
    return Answer(start, end + len(rest) - len(after) + max(map(len, endings)), has_end=True)


def _apply(tokenizer: Any, messages: Sequence[Message], generation: bool = False) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation
        )
    except Exception as error:  # jinja2's, and those of the template itself
        reason = printable(" ".join(str(error).split()))[:200].rstrip(".")
        raise DataError(
            f"The chat template refuses the conversation: {reason}",
            "Mend or remove the row, or use a base with another template.",
        ) from error
    return cast(str, text)
