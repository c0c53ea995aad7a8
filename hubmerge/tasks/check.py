"""Check a task before training on it, and report all problems at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hubmerge.errors import DataError
from hubmerge.progress import Progress, no_progress
from hubmerge.tasks.data import SPLITS, Split, read_split
from hubmerge.tasks.examples import (
    ChatExample,
    Example,
    PairExample,
    RankExample,
    TargetExample,
    TextExample,
)
from hubmerge.tasks.image_values import dark_note, has_wide_values
from hubmerge.tasks.row_formats import describe_shapes, shape_of
from hubmerge.tasks.rows import task_errors
from hubmerge.tasks.source import source_notes
from hubmerge.tasks.task import Task
from hubmerge.tasks.tried_rows import try_rows

_MISSING = {"", "none", "nan", "null", "n/a", "na", "-", "?"}  # likely no label of a row
_MAX_LISTED = 5  # classes that a note lists
_MAX_BROKEN = 1000  # rows of a split that are listed
_MAX_CHARACTERS = 1000  # characters of a text in an example
_SAMPLED_IMAGES = 50  # whose values are looked at
_REPORTED = 64  # rows between two reports of progress


@dataclass(frozen=True)
class TaskReport:
    """A summary of a task's data; `problems` prevent training on them, `notes` do not.

    `hints` say how to mend the problems, each once.
    `counts`: split -> number of examples. `classes`: split -> class -> number of examples. `head`:
    the texts that a label head is made from. `examples`: three training examples as text.
    """

    task: str
    kind: str
    counts: dict[str, int]
    classes: dict[str, dict[str, int]]
    head: tuple[str, ...]
    examples: tuple[str, ...]
    problems: tuple[str, ...]
    hints: tuple[str, ...]
    notes: tuple[str, ...]


def check_task(task: Task, progress: Progress = no_progress) -> TaskReport:
    """Read every split, try all its rows, and report all problems; broken data raise no error.

    Images are decoded, and prompts rendered, on all cores.
    """
    errors, splits = list[DataError](), dict[str, Split]()
    for name in SPLITS:
        try:
            splits[name] = read_split(task, name)
        except DataError as error:
            errors.append(error)
    for split in splits.values():
        errors += _row_errors(split, progress)
    train = splits.get("train")
    return TaskReport(
        task=task.name,
        kind=task.spec.kind,
        counts={name: len(split) for name, split in splits.items()},
        classes={name: split.class_counts() for name, split in splits.items() if split.classes},
        head=_head_prompts(train) if train else (),
        examples=tuple(_example_texts(train)) if train else (),
        # The same problem in all splits is listed once.
        problems=tuple(dict.fromkeys(error.message for error in errors)),
        hints=tuple(dict.fromkeys(error.hint for error in errors if error.hint)),
        notes=(*_source_notes(task), *_notes(splits)),
    )


def _row_errors(split: Split, progress: Progress) -> Iterator[DataError]:
    """The problems of a split's rows: first of their labels, then of the images or texts."""
    if split.classes:
        try:
            split.labels()
        except DataError as error:
            yield error
    unlabelled = set(np.flatnonzero(split.labels_or_missing() < 0).tolist())
    is_image = split.task.spec.kind == "image"
    rows = [row for row in _rows_to_check(split) if not (is_image and row in unlabelled)]
    broken, row_of_shape = 0, dict[str, str]()
    for done, (row, tried) in enumerate(try_rows(lambda row: shape_of(split.example(row)), rows)):
        if done % _REPORTED == 0:
            progress(f"reading {split.task.name} {split.name}", done, len(rows))
        if isinstance(tried, str):
            row_of_shape.setdefault(tried, f"{split.name} row {row}")
            continue
        broken += 1
        if broken <= _MAX_BROKEN:
            yield tried
    if len(row_of_shape) > 1:
        yield DataError(f"Task {split.task.name}: {describe_shapes(row_of_shape)}.")
    if broken > _MAX_BROKEN:
        more = broken - _MAX_BROKEN
        yield DataError(f"Task {split.task.name}: {more} more rows of {split.name} are broken.")


def _rows_to_check(split: Split) -> Sequence[int]:
    """All rows; of texts, which need no reading, those that hold none."""
    if split.task.spec.kind == "text":
        texts = split.rows["text"][:]
        return [
            row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()
        ]
    return range(len(split))


def _evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` rows, from the first to the last."""
    return sorted({round(row) for row in np.linspace(0, count - 1, min(limit, count)).tolist()})


def _source_notes(task: Task) -> Iterator[str]:
    with suppress(DataError):  # already among the problems
        yield from source_notes(task)


def _notes(splits: dict[str, Split]) -> Iterator[str]:
    for name, split in splits.items():
        if absent := split.absent_classes():
            listed = ", ".join(absent[:_MAX_LISTED]) + (" ..." if len(absent) > _MAX_LISTED else "")
            yield f"{name} has no example of {len(absent)} of its classes: {listed}."
    train = splits.get("train")
    if train is None:
        return
    if dark := _dark_note(train):
        yield dark
    if missing := [name for name in train.classes if name.strip().lower() in _MISSING]:
        yield (
            f"{', '.join(map(repr, missing))} is a class: if it stands for a missing label, remove "
            "these rows."
        )
    if train.classes and all(name.isdigit() for name in train.classes):
        yield "The class names are numbers; give them names under `classes:` in a task's YAML."
    if train.task.spec.format and "tools" in train.rows.column_names:
        yield "Tools are ignored: calls and their results are left out."
    in_train = set(_content_digests(train))
    for name in ("validation", "test"):
        if name not in splits:
            continue
        if repeated := sum(digest in in_train for digest in _content_digests(splits[name])):
            yield f"{repeated} of {len(splits[name])} {name} examples are also in train."


def _dark_note(train: Split) -> str | None:
    """A note on images of 16 bits that use only few of them, if no range is given."""
    spec = train.task.spec
    if spec.kind != "image" or spec.data.range is not None:
        return None
    brightest = 0.0
    for row in _evenly_spaced(len(train), _SAMPLED_IMAGES):
        with suppress(DataError), task_errors(train.task, "its images cannot be read"):
            image = train.rows[row]["image"]
            if image is not None and has_wide_values(image) and image.mode != "F":
                brightest = max(brightest, float(np.asarray(image).max(initial=0)))
    return dark_note(brightest)


def _content_digests(split: Split) -> Iterator[bytes]:
    """A digest of the input of each row: the image, the text, or the columns of the prompt."""
    rows, kind = split.rows, split.task.spec.kind
    if kind == "image":
        rows = rows.cast_column("image", datasets.Image(decode=False))
    columns = [kind] if split.classes else rows.column_names
    for batch in rows.select_columns(columns).iter(batch_size=1000):
        for values in zip(*(batch[column] for column in columns), strict=True):
            yield hashlib.blake2b(_content_bytes(values), digest_size=16).digest()


def _content_bytes(values: tuple[Any, ...]) -> bytes:
    image = values[0] if isinstance(values[0], dict) else {}
    if image.get("bytes"):
        return bytes(image["bytes"])
    if image.get("path") and Path(image["path"]).is_file():
        return Path(image["path"]).read_bytes()
    return repr(values).encode()


def _head_prompts(train: Split) -> tuple[str, ...]:
    """The text of each class for a label head, with the first template."""
    spec = train.task.spec
    if not train.classes or spec.head == "trained":
        return ()
    return tuple(spec.templates[0].replace("{}", name) for name in train.classes)


def _example_texts(train: Split) -> Iterator[str]:
    for row in _evenly_spaced(len(train), 3):
        try:
            yield _describe_example(train.example(row), train.classes)
        except DataError:
            continue  # already among the problems


def _describe_example(example: Example, classes: tuple[str, ...]) -> str:
    """An example as text; an arrow marks the correct answer."""
    if isinstance(example, RankExample):
        marked = [
            ("-> " if index == example.answer else "   ") + choice
            for index, choice in enumerate(example.choices)
        ]
        return "\n".join([_shorten(example.prompt), *map(_shorten, marked)])
    if isinstance(example, TargetExample):
        return f"{_shorten(example.prompt)}\n-> {_shorten(example.target)}"
    if isinstance(example, ChatExample):
        return "\n".join(_describe_turns(example))
    if isinstance(example, TextExample):
        return _shorten(example.text)
    if isinstance(example, PairExample):
        lines = [_shorten(example.anchor), f"-> {_shorten(example.positive)}"]
        negative = [f"   {_shorten(example.negative)}"] if example.negative is not None else []
        return "\n".join([*lines, *negative])
    text, label = example
    if not isinstance(text, str):
        text = f"an image of {text.width} x {text.height} pixels, mode {text.mode}"
    return f"{_shorten(text)}\n-> {classes[label]}"


def _describe_turns(chat: ChatExample) -> Iterator[str]:
    """The turns of a conversation; arrows mark the answers that are learned."""
    for number, message in enumerate(chat.messages):
        is_target = message.role == "assistant" and number >= chat.first
        yield f"{'-> ' if is_target else ''}{message.role}: {_shorten(message.content)}"


def _shorten(text: str) -> str:
    return (
        text
        if len(text) <= _MAX_CHARACTERS
        else f"{text[:_MAX_CHARACTERS]} ... ({len(text)} characters)"
    )
