"""Conversations: messages of OpenAI's shape (role, content) or ShareGPT's (from, value)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hubmerge.errors import DataError
from hubmerge.refs import printable

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
}
_TOOL_ROLES = {
    *("tool", "tool_call", "tool_response", "function", "function_call", "function_response"),
    *("ipython", "observation"),
}
_SHAPES = (("role", "content"), ("from", "value"))
_MOST_ROLES = 12  # roles of a conversation that an error lists


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class ParsedMessages:
    """The messages of a list, and whether calls and results of tools were left out of it.

    `shape` is the key of their roles, `role` or `from`.
    """

    messages: tuple[Message, ...]
    has_tools: bool
    shape: str


def parse_messages(value: Any, where: str) -> ParsedMessages:
    """The messages of a list.

    Raises DataError naming `where` for anything else, unknown roles and contents that are not text.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} are {_describe(value)}, not a list of messages")
    parsed = [_parse_message(message, where) for message in value]
    kept = tuple(message for message in parsed if message is not None)
    return ParsedMessages(kept, len(kept) < len(parsed), "role" if "role" in value[0] else "from")


def _parse_message(message: Any, where: str) -> Message | None:
    """One message, None for what belongs to tools."""
    if not isinstance(message, Mapping):
        raise DataError(f"{where} have {_describe(message)}, not a role and a content")
    shapes = [shape for shape in _SHAPES if shape[0] in message]
    if len(shapes) != 1:
        raise DataError(
            f"{where} have {'both' if shapes else 'neither'} `role` and `from`",
            "Write all rows as {role, content}, or all as {from, value}.",
        )
    role, content = (message.get(key) for key in shapes[0])
    if role in _TOOL_ROLES or message.get("tool_calls") or message.get("function_call"):
        return None
    if role not in _ROLES:
        raise DataError(
            f"{where} have the role {printable(repr(role))[:60]}",
            "Write system, user and assistant, or human and gpt.",
        )
    return Message(_ROLES[role], _text_of(content, where))


def _text_of(content: Any, where: str) -> str:
    """The text of a message, which may be a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else content
    if not isinstance(content, str):
        raise DataError(f"{where} have a content that is {_describe(content)}, not text")
    return content


def check_order(messages: Sequence[Message], where: str) -> None:
    """Raise DataError unless user and assistant alternate, from a user to a last answer.

    A system message may come first. Every answer has a text.
    """
    turns = messages[messages[0].role == "system" :] if messages else ()
    expected = ("user", "assistant")
    wrong = any(turn.role != expected[index % 2] for index, turn in enumerate(turns))
    if wrong or not turns or turns[-1].role != "assistant":
        roles = [message.role for message in messages]
        more = ", ..." if len(roles) > _MOST_ROLES else ""
        raise DataError(
            f"the roles of {where} are {', '.join(roles[:_MOST_ROLES]) or 'none'}{more}",
            "After a system message, which may be left out, user and assistant must take turns and "
            "end with assistant: mend or remove the row.",
        )
    if not all(turn.content.strip() for turn in turns if turn.role == "assistant"):
        raise DataError(f"an answer in {where} is empty", "Mend or remove the row.")


def common_turns(one: Sequence[Message], other: Sequence[Message]) -> int:
    """The number of messages that two conversations begin with."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _describe(value: Any) -> str:
    return "nothing" if value is None else printable(repr(value))[:60]
