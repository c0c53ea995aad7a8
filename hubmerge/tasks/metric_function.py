"""A metric of one's own: a Python function that takes rows and returns one number for each.

A row is a dictionary with the texts `prediction` and `reference`, and `row`, the columns of the
data that the task uses.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from hubmerge.errors import UsageError
from hubmerge.refs import printable

MetricRow = Mapping[str, Any]
_RETURN_HINT = "Return a list with one number for each row, in their order."


@cache
def load_metric_function(name: str) -> Callable[[Sequence[MetricRow]], Any]:
    """The function of `module:function`, with the current folder among those of modules.

    Raises UsageError if the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's code may raise anything
        raise UsageError(
            f"--metric {printable(name)}: module {printable(module_name)!r} cannot be imported: "
            f"{_reason(error)}.",
            "Start hubmerge in the folder of the module, or install the module.",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(
            f"--metric {printable(name)}: {printable(module_name)} has no function "
            f"{printable(function_name)!r}.",
            f"It has {', '.join(names)}." if names else "Define it with one argument, the rows.",
        )
    return cast(Callable[[Sequence[MetricRow]], Any], function)


def metric_function_id(name: str) -> str:
    """module:function#digest; the digest is of the module's file, so edits give new scores."""
    path = inspect.getsourcefile(load_metric_function(name))
    source = Path(path).read_bytes() if path else b""
    return f"{name}#{hashlib.sha256(source).hexdigest()[:8]}"


def call_metric_function(name: str, rows: Sequence[MetricRow]) -> tuple[float, ...]:
    """One finite number for each row.

    Raises UsageError if the function raises, or returns anything else.
    """
    where = f"The metric {printable(name)}"
    try:
        result = load_metric_function(name)(rows)
        is_list = not isinstance(result, str | Mapping) and hasattr(result, "__len__")
        numbers = tuple(float(number) for number in result) if is_list else None
    except UsageError:
        raise
    except Exception as error:  # as above
        raise UsageError(
            f"{where} failed on {len(rows)} rows: {_reason(error)}.", _RETURN_HINT
        ) from error
    if numbers is None:
        raise UsageError(
            f"{where} returned {printable(repr(result)[:40])} for {len(rows)} rows.", _RETURN_HINT
        )
    if len(numbers) != len(rows):
        raise UsageError(
            f"{where} returned {len(numbers)} numbers for {len(rows)} rows.", _RETURN_HINT
        )
    broken = next((n for n, number in enumerate(numbers) if not math.isfinite(number)), None)
    if broken is not None:
        prediction = printable(str(rows[broken]["prediction"])[:40])
        raise UsageError(
            f"{where} returned {numbers[broken]} for the prediction {prediction!r}.",
            "Return a finite number for every row.",
        )
    return numbers


def _reason(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}"[:200]).rstrip(".")
