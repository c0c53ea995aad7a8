"""One example of each kind of task, from one row of its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from hubmerge.errors import DataError
from hubmerge.refs import printable
from hubmerge.specs import TaskSpec
from hubmerge.specs.prompt_language import names_of_expression, names_of_template
from hubmerge.tasks.labels import Labels
from hubmerge.tasks.prompts import FIELD, expression, render


@dataclass(frozen=True)
class Ranked:
    """A prompt, what may follow it, and which of that is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def target(self) -> str:
        return self.choices[self.answer]


@dataclass(frozen=True)
class Paired:
    """A prompt and what should follow it."""

    prompt: str
    target: str


Example = tuple[Image, int] | tuple[str, int] | Ranked | Paired


def example_of(spec: TaskSpec, labels: Labels, row: Mapping[str, Any], at: str) -> Example:
    """The example that a row is; raises DataError with what is wrong `at` it: "train row 3"."""
    if spec.kind == "rank":
        return _ranked(spec, row, at)
    if spec.kind == "target":
        # What is written is learnt whole: only `max_tokens` bounds it.
        prompt = _rendered("prompt", spec.prompt, row, None, at)
        return Paired(prompt, _rendered("target", spec.target, row, None, at))
    if spec.kind == "text":
        return _text(row["text"], "text", at), labels.number(row["label"], at)
    if not isinstance(row["image"], Image):
        raise DataError(f"the image of {at} cannot be read: there is none")
    return row["image"], labels.number(row["label"], at)


def _ranked(spec: TaskSpec, row: Mapping[str, Any], at: str) -> Ranked:
    prompt = _rendered("prompt", spec.prompt, row, FIELD, at)
    choices = _choices(spec, row, at)
    answer = _value("answer", spec.answer, row, at)
    if not isinstance(answer, (int, float)) or answer not in range(len(choices)):
        raise DataError(
            f"the answer of {at}, {_shown(answer)}, is no index of its {len(choices)} choices"
        )
    return Ranked(prompt, choices, int(answer))


def _choices(spec: TaskSpec, row: Mapping[str, Any], at: str) -> tuple[str, ...]:
    if isinstance(spec.choices, tuple):
        return spec.choices
    found = _value("choices", spec.choices, row, at)
    if not isinstance(found, (list, tuple)):
        raise DataError(f"the choices of {at}, {_shown(found)}, are no list")
    if len(found) < 2:
        raise DataError(f"the choices of {at} are {len(found)}, which leaves nothing to choose")
    return tuple(_text(choice, "choice", at) for choice in found)


def _rendered(
    field: str, template: str, row: Mapping[str, Any], longest: int | None, at: str
) -> str:
    with _saying(f"the {field} of {at} cannot be made"):
        text = render(template, row, longest)
    return _text(text, field, at)


def _value(field: str, text: str, row: Mapping[str, Any], at: str) -> Any:
    with _saying(f"the {field} of {at} cannot be made"):
        return expression(text, row, FIELD)


@contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {error.message}") from error


def _text(value: Any, field: str, at: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"the {field} of {at} is empty")
    if not isinstance(value, str):
        raise DataError(f"the {field} of {at} is no text but {_shown(value)}")
    return value.strip()


def _shown(value: Any) -> str:
    return "nothing" if value is None else printable(repr(value)[:60])


def columns_named(spec: TaskSpec) -> dict[str, set[str]]:
    """Field of the spec -> the columns that it names; `row` stands for all of them."""
    if spec.kind == "image":
        return {"image": {spec.data.image}, "label": {spec.data.label}}
    if spec.kind == "text":
        return {"text": {spec.data.text}, "label": {spec.data.label}}
    named = {
        "prompt": names_of_template(spec.prompt),
        "target": names_of_template(spec.target),
        "choices": names_of_expression(spec.choices) if isinstance(spec.choices, str) else set(),
        "answer": names_of_expression(spec.answer) if spec.answer else set(),
    }
    return {field: names - {"range"} for field, names in named.items() if names}
