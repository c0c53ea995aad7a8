"""Everything that is wrong with a task, at once, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hubmerge.errors import DataError
from hubmerge.tasks.data import SPLITS, Split, read_split
from hubmerge.tasks.examples import Example, Paired, Ranked
from hubmerge.tasks.task import Task

_TOLD = 5  # broken rows of a split that are named
_SHOWN = 1000  # characters of a text in an example
# How many rows of a split are tried, spread over it: an image is opened, a prompt is rendered.
# Of texts those are tried that are no text, however many there are.
_TRIED = {"image": 50, "rank": 2000, "target": 2000}


@dataclass(frozen=True)
class Report:
    """What a task's data are like: `problems` forbid training on them, `notes` are worth knowing.

    `counts` is split -> examples, `classes` split -> class -> examples; `head` what the label head
    of a classification task is made of; `examples` three of train as the model sees them.
    """

    task: str
    kind: str
    counts: dict[str, int]
    classes: dict[str, dict[str, int]]
    head: tuple[str, ...]
    examples: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check_task(task: Task) -> Report:
    """Read every split, try its rows, and tell all that is wrong; raises for no broken data."""
    problems, splits = list[str](), dict[str, Split]()
    for name in SPLITS:
        try:
            splits[name] = read_split(task, name)
        except DataError as error:
            problems.append(error.message)
    for split in splits.values():
        problems += _broken(split)
    train = splits.get("train")
    return Report(
        task=task.name,
        kind=task.spec.kind,
        counts={name: len(split) for name, split in splits.items()},
        classes={name: split.per_class() for name, split in splits.items() if split.classes},
        head=_head(train) if train else (),
        examples=tuple(_examples(train)) if train else (),
        problems=tuple(dict.fromkeys(problems)),  # what is wrong with all splits is said once
        notes=tuple(_notes(splits)),
    )


def _broken(split: Split) -> Iterator[str]:
    """What is wrong with the rows of a split: their labels, and then what they are labels of."""
    if split.classes:
        try:
            split.labels()
        except DataError as error:
            yield error.message
    unlabelled = set(np.flatnonzero(split.found() < 0).tolist())
    broken = 0
    for row in _tried(split):
        if row in unlabelled and split.task.spec.kind == "image":
            continue  # said already
        try:
            split.example(row)
        except DataError as error:
            broken += 1
            if broken <= _TOLD:
                yield error.message
    if broken > _TOLD:
        more = broken - _TOLD
        yield f"Task {split.task.name}: {more} more rows of {split.name} are broken as well."


def _tried(split: Split) -> list[int]:
    if split.task.spec.kind == "text":
        texts = split.rows["text"][:]
        return [
            row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()
        ]
    return _spread(len(split), _TRIED[split.task.spec.kind])


def _spread(count: int, most: int) -> list[int]:
    """At most that many rows, from the first to the last."""
    return sorted({round(row) for row in np.linspace(0, count - 1, min(most, count)).tolist()})


def _notes(splits: dict[str, Split]) -> Iterator[str]:
    for name, split in splits.items():
        if absent := split.absent():
            few = ", ".join(absent[:_TOLD]) + (" ..." if len(absent) > _TOLD else "")
            yield f"{name} has no example of {len(absent)} of its classes: {few}."
    train = splits.get("train")
    if train is None:
        return
    if train.classes and all(name.isdigit() for name in train.classes):
        yield "The classes are numbers; words under `classes:` in a YAML say what they mean."
    seen = set(_contents(train))
    for name in ("validation", "test"):
        if name in splits and (again := sum(key in seen for key in _contents(splits[name]))):
            yield f"{again} of {len(splits[name])} {name} examples are in train as well."


def _contents(split: Split) -> Iterator[bytes]:
    """A digest of what is asked in each row: the image, the text, or all that prompts are of."""
    rows, kind = split.rows, split.task.spec.kind
    if kind == "image":
        rows = rows.cast_column("image", datasets.Image(decode=False))
    asked = [kind] if split.classes else rows.column_names
    for batch in rows.select_columns(asked).iter(batch_size=1000):
        for values in zip(*(batch[column] for column in asked), strict=True):
            yield hashlib.blake2b(_bytes(values), digest_size=16).digest()


def _bytes(values: tuple[Any, ...]) -> bytes:
    image = values[0] if isinstance(values[0], dict) else {}
    if image.get("bytes"):
        return bytes(image["bytes"])
    if image.get("path") and Path(image["path"]).is_file():
        return Path(image["path"]).read_bytes()
    return repr(values).encode()


def _head(train: Split) -> tuple[str, ...]:
    """What the label head says of each class, in the words of the first template."""
    spec = train.task.spec
    if not train.classes or spec.head == "trained":
        return ()
    return tuple(spec.templates[0].replace("{}", name) for name in train.classes)


def _examples(train: Split) -> Iterator[str]:
    for row in _spread(len(train), 3):
        try:
            yield _shown(train.example(row), train.classes)
        except DataError:
            continue  # it is among the problems


def _shown(example: Example, classes: tuple[str, ...]) -> str:
    """An example in words; an arrow stands before what is right."""
    if isinstance(example, Ranked):
        marked = [
            ("-> " if place == example.answer else "   ") + choice
            for place, choice in enumerate(example.choices)
        ]
        return "\n".join([_cut(example.prompt), *map(_cut, marked)])
    if isinstance(example, Paired):
        return f"{_cut(example.prompt)}\n-> {_cut(example.target)}"
    asked, label = example
    if not isinstance(asked, str):
        asked = f"an image of {asked.width} x {asked.height} pixels, mode {asked.mode}"
    return f"{_cut(asked)}\n-> {classes[label]}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ... ({len(text)} characters)"
