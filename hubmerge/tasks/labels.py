"""Class names and labels; data may write a label as a class name, another word, or a number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np

from hubmerge.errors import DataError, UnknownName, join_with_or
from hubmerge.refs import printable
from hubmerge.specs import TaskSpec

LabelArray = np.ndarray[Any, np.dtype[np.int64]]

_MAX_LISTED = 5  # labels or values that an error lists


@dataclass(frozen=True)
class ClassLabels:
    """The classes of a task in label order, and the value that the data use for each of them."""

    classes: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    @cached_property
    def _label_of(self) -> dict[Any, int]:
        # 1, 1.0 and True are one key; files without types use them for the same label.
        return {value: label for label, value in enumerate(self.values)}

    def label(self, value: Any, location: str) -> int:
        """The label of one value; raises DataError that names `location` if it is not valid."""
        label = self._label_of.get(value)
        if label is None:
            raise DataError(
                f"the label of {location}, {_describe_value(value)}, is not "
                f"{self._describe_allowed()}"
            )
        return label

    def labels_or_missing(self, values: Sequence[Any]) -> LabelArray:
        """The labels of a column, -1 for values that are not valid."""
        return np.array([self._label_of.get(value, -1) for value in values], np.int64)

    def labels(self, values: Sequence[Any], split: str) -> LabelArray:
        """The labels of a column; raises DataError with the rows that have no valid label."""
        labels = self.labels_or_missing(values)
        invalid = np.flatnonzero(labels < 0)
        if invalid.size > 1:
            rows = [f"{row} ({_describe_value(values[row])})" for row in invalid[:_MAX_LISTED]]
            more = f" and {invalid.size - _MAX_LISTED} more" if invalid.size > _MAX_LISTED else ""
            raise DataError(
                f"the labels of {split} rows {', '.join(rows)}{more} are not "
                f"{self._describe_allowed()}"
            )
        if invalid.size:
            self.label(values[invalid[0]], f"{split} row {invalid[0]}")
        return labels

    def _describe_allowed(self) -> str:
        if self.values == tuple(range(len(self.values))):
            return f"a whole number in 0..{len(self.values) - 1}"
        listed = [_describe_value(value) for value in self.values[:_MAX_LISTED]]
        more = len(self.values) - len(listed)
        return join_with_or([*listed, f"one of {more} others"] if more else listed)


def find_class_labels(
    spec: TaskSpec, feature: object, train_labels: Callable[[], Iterable[Any]]
) -> ClassLabels:
    """The class labels of a task, from its spec, the type of the label column and train.

    Class names come from `classes` in the spec, else from a ClassLabel column, else they are the
    sorted words (or, for text tasks, numbers) that `train_labels()` returns. Raises DataError if
    they do not fit the data.
    """
    if not isinstance(feature, (datasets.Value, datasets.ClassLabel)):
        raise DataError(f"column {printable(spec.data.label)!r} does not hold labels")
    data_names = tuple(getattr(feature, "names", None) or ())
    has_words = feature.dtype in ("string", "large_string")
    if data_names or (spec.classes and not has_words):
        classes = spec.classes or tuple(map(_class_name, data_names))
        labels = _labels_by_number(classes, data_names)
    elif spec.classes:
        labels = _labels_by_word(spec.classes, _distinct_sorted(train_labels()))
    elif has_words or spec.kind == "text":
        values = _distinct_sorted(train_labels())
        labels = ClassLabels(tuple(map(_class_name, values)), values)
    else:
        labels = ClassLabels()  # numbers are not usable as class names of images
    _check_distinct_classes(spec, labels.classes)
    return labels


def _labels_by_number(classes: tuple[str, ...], data_names: tuple[str, ...]) -> ClassLabels:
    if data_names:
        _check_names(classes, data_names)
    return ClassLabels(classes, tuple(range(len(classes))))


def _labels_by_word(classes: tuple[str, ...], values: Sequence[Any]) -> ClassLabels:
    """The classes of the spec; the data may write them with other case, spaces or underscores."""
    by_name = {normalize_name(value): value for value in values}
    unknown = sorted(set(by_name) - set(map(normalize_name, classes)))
    if unknown:
        near = UnknownName("label", unknown[0], classes)
        raise DataError(
            f"train has the label {unknown[0]!r}, which is not in `classes:`", near.hint
        )
    return ClassLabels(classes, tuple(by_name.get(normalize_name(name), name) for name in classes))


def _check_distinct_classes(spec: TaskSpec, classes: Sequence[str]) -> None:
    if not classes:
        raise DataError(
            f"column {spec.data.label!r} has no class names",
            "List them in label order under `classes:` in the task's YAML.",
        )
    if len(classes) == 1:
        raise DataError(f"it has only one class, {classes[0]!r}")
    duplicates = [name for name, count in Counter(classes).items() if count > 1]
    if duplicates:
        raise DataError(f"two labels have the same class name, {duplicates[0]!r}")


def _check_names(classes: Sequence[str], data_names: Sequence[str]) -> None:
    """Check the number of classes, and that no class has the name of another label in the data."""
    if len(data_names) != len(classes):
        raise DataError(f"it lists {len(classes)} classes, but the data have {len(data_names)}")
    label_of = {normalize_name(name): label for label, name in enumerate(data_names)}
    for label, name in enumerate(classes):
        if label_of.get(normalize_name(name), label) != label:
            raise DataError(
                f"it lists class {name!r} as label {label}, but in the data it is label "
                f"{label_of[normalize_name(name)]}",
                "List `classes:` in the order of the data's labels.",
            )


def _distinct_sorted(values: Iterable[Any]) -> tuple[Any, ...]:
    """The distinct values in order, without missing values and fractional numbers."""
    present = {value for value in values if value is not None and value != ""}
    return tuple(sorted(value for value in present if not _is_fractional(value)))


def _is_fractional(value: Any) -> bool:
    return isinstance(value, float) and not value.is_integer()  # also true for NaN


def _class_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value))
    return printable(str(value).replace("_", " "))


def normalize_name(name: object) -> str:
    """A class name in lower case, with single spaces instead of underscores and white space."""
    return " ".join(str(name).replace("_", " ").lower().split())


def _describe_value(value: Any) -> str:
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "none" if is_missing else printable(repr(value))[:60]
