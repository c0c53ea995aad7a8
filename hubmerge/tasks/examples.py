"""Make an example of a task from one row of its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from hubmerge.errors import DataError
from hubmerge.refs import printable
from hubmerge.specs import TaskSpec
from hubmerge.specs.prompt_language import expression_names, template_names
from hubmerge.tasks.image_values import to_8_bit
from hubmerge.tasks.labels import ClassLabels
from hubmerge.tasks.prompts import MAX_FIELD_CHARACTERS, evaluate_expression, render_template
from hubmerge.tasks.row_formats import (
    ChatExample,
    FormatExample,
    TargetExample,
    TextExample,
    chat_of,
    columns_of_format,
    example_of_row,
    question_and_answer,
)


@dataclass(frozen=True)
class RankExample:
    """A prompt, the choices that may follow it, and the index of the correct one.

    With `chat`, the prompt is a user's message, and a choice is the answer to it.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    chat: bool = False

    @property
    def target(self) -> str:
        return self.choices[self.answer]


@dataclass(frozen=True)
class PairExample:
    """A text, the text that it should be near to, and one that it should be far from, if any.

    `relevant` are the ids of documents that belong to it, of a task with a corpus; then `positive`
    is the text of the first one.
    """

    anchor: str
    positive: str
    negative: str | None = None
    relevant: tuple[str, ...] = ()


LanguageExample = RankExample | FormatExample
Example = tuple[Image, int] | tuple[str, int] | LanguageExample | PairExample


__all__ = [
    "ChatExample",
    "Example",
    "LanguageExample",
    "PairExample",
    "RankExample",
    "TargetExample",
    "TextExample",
    "chat_of",
    "make_example",
    "used_columns",
]


def make_example(
    spec: TaskSpec, labels: ClassLabels, row: Mapping[str, Any], location: str
) -> Example:
    """The example of a row; DataError names the row by `location`, such as "train row 3"."""
    if spec.kind == "rank":
        return _rank_example(spec, row, location)
    if spec.kind == "pairs":
        return _pair_example(spec, row, location)
    if spec.format:
        return example_of_row(spec, row, location)
    if spec.kind == "target":
        # Fields are not cut, as the target is learned in full; only `max_tokens` limits it.
        prompt = _render_field("prompt", spec.prompt, row, None, location)
        target = _render_field("target", spec.target, row, None, location)
        return question_and_answer(prompt, target, spec.chat)
    if spec.kind == "text":
        return _require_text(row["text"], "text", location), labels.label(row["label"], location)
    if not isinstance(row["image"], Image):
        raise DataError(f"the image of {location} is missing")
    image = to_8_bit(row["image"], spec.data.range, location)
    return image, labels.label(row["label"], location)


def _rank_example(spec: TaskSpec, row: Mapping[str, Any], location: str) -> RankExample:
    prompt = _render_field("prompt", spec.prompt, row, MAX_FIELD_CHARACTERS, location)
    choices = _choices(spec, row, location)
    answer = _evaluate_field("answer", spec.answer, row, location)
    if not isinstance(answer, (int, float)) or answer not in range(len(choices)):
        raise DataError(
            f"the answer of {location}, {_describe_value(answer)}, is not an index of its "
            f"{len(choices)} choices"
        )
    return RankExample(prompt, choices, int(answer), spec.chat)


def _pair_example(spec: TaskSpec, row: Mapping[str, Any], location: str) -> PairExample:
    """The texts of a pair; that of a relevant document is filled in by its corpus."""

    def render(field: str) -> str:
        return _render_field(field, getattr(spec, field), row, None, location)

    return PairExample(
        render("anchor"),
        render("positive") if spec.positive else "",
        render("negative") if spec.negative else None,
        _relevant(spec, row, location) if spec.relevant else (),
    )


def _relevant(spec: TaskSpec, row: Mapping[str, Any], location: str) -> tuple[str, ...]:
    ids = _evaluate_field("relevant", spec.relevant, row, location)
    listed = ids if isinstance(ids, (list, tuple)) else [] if ids in (None, "") else [ids]
    if not listed:
        raise DataError(
            f"{location} has no relevant document", "Remove the row, or name a document of it."
        )
    return tuple(dict.fromkeys(str(each) for each in listed))


def _choices(spec: TaskSpec, row: Mapping[str, Any], location: str) -> tuple[str, ...]:
    if isinstance(spec.choices, tuple):
        return spec.choices
    choices = _evaluate_field("choices", spec.choices, row, location)
    if not isinstance(choices, (list, tuple)):
        raise DataError(f"the choices of {location}, {_describe_value(choices)}, are not a list")
    if len(choices) < 2:
        raise DataError(f"the choices of {location} are only {len(choices)}; at least 2 are needed")
    return tuple(_require_text(choice, "choice", location) for choice in choices)


def _render_field(
    field: str, template: str, row: Mapping[str, Any], max_field: int | None, location: str
) -> str:
    with _prefix_errors(f"the {field} of {location} cannot be rendered"):
        text = render_template(template, row, max_field)
    return _require_text(text, field, location)


def _evaluate_field(field: str, text: str, row: Mapping[str, Any], location: str) -> Any:
    with _prefix_errors(f"the {field} of {location} cannot be evaluated"):
        return evaluate_expression(text, row, MAX_FIELD_CHARACTERS)


@contextmanager
def _prefix_errors(prefix: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{prefix}: {error.message}") from error


def _require_text(value: Any, field: str, location: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"the {field} of {location} is empty")
    if not isinstance(value, str):
        raise DataError(f"the {field} of {location} is {_describe_value(value)}, not text")
    return value


def _describe_value(value: Any) -> str:
    return "nothing" if value is None else printable(repr(value)[:60])


def used_columns(spec: TaskSpec) -> dict[str, set[str]]:
    """Field of the spec -> the columns that it uses; `row` means all columns."""
    if spec.kind == "image":
        return {"image": {spec.data.image}, "label": {spec.data.label}}
    if spec.kind == "text":
        return {"text": {spec.data.text}, "label": {spec.data.label}}
    if spec.format:
        return {spec.format: set(columns_of_format(spec)[0].values())}
    columns = {
        "prompt": template_names(spec.prompt),
        "target": template_names(spec.target),
        "choices": expression_names(spec.choices) if isinstance(spec.choices, str) else set(),
        "answer": expression_names(spec.answer) if spec.answer else set(),
        "anchor": template_names(spec.anchor),
        "positive": template_names(spec.positive),
        "negative": template_names(spec.negative),
        "relevant": expression_names(spec.relevant) if spec.relevant else set(),
    }
    return {field: names - {"range"} for field, names in columns.items() if names}
