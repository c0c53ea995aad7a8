"""Class names, and how the data write them: as their own names, as words, or as numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np

from hubmerge.errors import DataError, UnknownName, either
from hubmerge.refs import printable
from hubmerge.specs import TaskSpec

Numbers = np.ndarray[Any, np.dtype[np.int64]]

_TOLD = 5  # broken labels or values that an error lists


@dataclass(frozen=True)
class Labels:
    """The classes of a task in label order, and the value by which the data name each of them."""

    classes: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    @cached_property
    def _number_of(self) -> dict[Any, int]:
        # 1, 1.0 and True are one key, which is how files without types mean them.
        return {value: number for number, value in enumerate(self.values)}

    def number(self, value: Any, at: str) -> int:
        """The label of one value; raises DataError, which says whose it is, if it is none."""
        label = self._number_of.get(value)
        if label is None:
            raise DataError(f"the label of {at}, {_shown(value)}, is not {self._allowed()}")
        return label

    def found(self, values: Sequence[Any]) -> Numbers:
        """The labels of a whole column, -1 where there is none."""
        return np.array([self._number_of.get(value, -1) for value in values], np.int64)

    def numbers(self, values: Sequence[Any], split: str) -> Numbers:
        """The labels of a whole column; raises DataError that names the rows without one."""
        found = self.found(values)
        wrong = np.flatnonzero(found < 0)
        if wrong.size > 1:
            said = ", ".join(f"{row} ({_shown(values[row])})" for row in wrong[:_TOLD])
            more = f" and {wrong.size - _TOLD} more" if wrong.size > _TOLD else ""
            raise DataError(f"the labels of {split} rows {said}{more} are not {self._allowed()}")
        if wrong.size:
            self.number(values[wrong[0]], f"{split} row {wrong[0]}")
        return found

    def _allowed(self) -> str:
        if self.values == tuple(range(len(self.values))):
            return f"a whole number in 0..{len(self.values) - 1}"
        few = [_shown(value) for value in self.values[:_TOLD]]
        more = len(self.values) - len(few)
        return either([*few, f"one of {more} others"] if more else few)


def labels_of(spec: TaskSpec, feature: object, distinct: Callable[[], Iterable[Any]]) -> Labels:
    """The labels of a task, from its spec, the type of the label column and its values in train.

    Names come from `classes`, else from the data: a ClassLabel's, the words that label the rows of
    train, sorted, or for texts the numbers that do. Raises DataError if they do not fit.
    """
    if not isinstance(feature, (datasets.Value, datasets.ClassLabel)):
        raise DataError(f"column {printable(spec.data.label)!r} holds no labels")
    known = tuple(getattr(feature, "names", None) or ())
    words = feature.dtype in ("string", "large_string")
    if known or (spec.classes and not words):
        named = _by_number(spec.classes or tuple(map(_words, known)), known)
    elif spec.classes:
        named = _by_word(spec.classes, _sorted(distinct()))
    elif words or spec.kind == "text":
        values = _sorted(distinct())
        named = Labels(tuple(map(_words, values)), values)
    else:
        named = Labels()  # a number says nothing about an image
    _check_tellable(spec, named.classes)
    return named


def _by_number(classes: tuple[str, ...], known: tuple[str, ...]) -> Labels:
    if known:
        _check_names(classes, known)
    return Labels(classes, tuple(range(len(classes))))


def _by_word(classes: tuple[str, ...], values: Sequence[Any]) -> Labels:
    """The task's own classes, which the data may write with other case and underscores."""
    written = {plain(value): value for value in values}
    strange = sorted(set(written) - set(map(plain, classes)))
    if strange:
        near = UnknownName("label", strange[0], classes)
        raise DataError(f"{strange[0]!r} labels rows of train and is none of `classes:`", near.hint)
    return Labels(classes, tuple(written.get(plain(name), name) for name in classes))


def _check_tellable(spec: TaskSpec, classes: Sequence[str]) -> None:
    if not classes:
        raise DataError(
            f"column {spec.data.label!r} has no class names",
            "List them in label order under `classes:` in the task's YAML.",
        )
    if len(classes) == 1:
        raise DataError(f"it has one class only, {classes[0]!r}")
    again = [name for name, count in Counter(classes).items() if count > 1]
    if again:
        raise DataError(f"two labels are both written {again[0]!r}")


def _check_names(classes: Sequence[str], known: Sequence[str]) -> None:
    """The task may word its classes as it likes, but not put a label's own name elsewhere."""
    if len(known) != len(classes):
        raise DataError(f"it lists {len(classes)} classes, but the data have {len(known)}")
    label_of = {plain(name): label for label, name in enumerate(known)}
    for label, name in enumerate(classes):
        if label_of.get(plain(name), label) != label:
            raise DataError(
                f"it lists class {name!r} as label {label}, but in the data it is "
                f"label {label_of[plain(name)]}",
                "List `classes:` in the order of the data's labels.",
            )


def _sorted(values: Iterable[Any]) -> tuple[Any, ...]:
    """Distinct values without the missing ones, numbers by size and words by letter."""
    there = {value for value in values if value is not None and value != ""}
    return tuple(sorted(value for value in there if not _no_number(value)))


def _no_number(value: Any) -> bool:
    return isinstance(value, float) and not value.is_integer()  # NaN is none either


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value))
    return printable(str(value).replace("_", " "))


def plain(name: object) -> str:
    """A class name without what people write differently: case, underscores, white space."""
    return " ".join(str(name).replace("_", " ").lower().split())


def _shown(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "none" if missing else printable(repr(value))[:60]
