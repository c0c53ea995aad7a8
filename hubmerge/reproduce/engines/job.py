"""A unit as text on its way to a worker, and its outcome on the way back.

Every engine uses these functions, so results are the same with all of them. JSON instead of pickle:
reading it runs no code.
"""

from __future__ import annotations

import importlib
import json
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubmerge.errors import HubmergeError
from hubmerge.redaction import redact_tokens
from hubmerge.reproduce.engines.engine import Perform, UnitError, UnitOutcome
from hubmerge.reproduce.unit import Result, Unit, WorkContext

_TEMPORARY_FAILURE = 75  # the exit code of errors that may be gone later


def function_name(perform: Perform) -> str:
    """The name by which another process can import a function: module:name."""
    return f"{perform.__module__}:{perform.__qualname__}"


def find_function(name: str) -> Perform:
    """Import a function by its module:name."""
    module, _, function = name.partition(":")
    perform: Perform = getattr(importlib.import_module(module), function)
    return perform


def encode_job(unit: Unit, inputs: Mapping[str, Result], context: WorkContext) -> str:
    """A unit, its inputs and its context as one line of JSON."""
    job = {
        "unit": _unit_to_json(unit),
        "needs": {role: _unit_to_json(needed) for role, needed in unit.needs.items()},
        "inputs": dict(inputs),
        "context": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(context).items()
        },
    }
    return json.dumps(job)


def run_job(text: str, perform: Perform) -> str:
    """Perform an encoded job; returns the outcome as one line of JSON and never raises."""
    job = json.loads(text)
    key = job["unit"]["key"]
    start = time.perf_counter()
    try:
        result = perform(_unit_of_job(job), job["inputs"], _context_from_json(job["context"]))
        return json.dumps({"key": key, "result": result, "seconds": time.perf_counter() - start})
    except Exception as error:
        return encode_error(text, _unit_error(error))


def encode_error(text: str, error: UnitError) -> str:
    """The outcome of a job that has no result, as one line of JSON."""
    return json.dumps({"key": json.loads(text)["unit"]["key"], "error": vars(error)})


def decode_outcome(text: str | bytes) -> UnitOutcome:
    """The outcome that `run_job` encoded."""
    fields = json.loads(text)
    if "error" in fields:
        return UnitOutcome(fields["key"], error=UnitError(**fields["error"]))
    return UnitOutcome(fields["key"], fields["seconds"], fields["result"])


def _unit_to_json(unit: Unit) -> dict[str, Any]:
    return {
        "key": unit.key,
        "kind": unit.kind,
        "params": unit.params,
        "about": unit.about,
        "cpus": unit.cpus,
        "gpus": unit.gpus,
        "steps": unit.steps,
    }


def _unit_of_job(job: Mapping[str, Any]) -> Unit:
    """The unit with its direct needs but without theirs, which keeps jobs small."""
    needs = {role: _unit_from_json(needed, {}) for role, needed in job["needs"].items()}
    return _unit_from_json(job["unit"], needs)


def _unit_from_json(content: Mapping[str, Any], needs: Mapping[str, Unit]) -> Unit:
    fields = {name: value for name, value in content.items() if name != "key"}
    unit = Unit(**fields, needs=needs)
    vars(unit)["key"] = content["key"]  # the cached property finds it here
    return unit


def _context_from_json(content: Mapping[str, Any]) -> WorkContext:
    paths = {name: Path(content[name]) for name in ("folder", "recipes")}
    return WorkContext(**{**content, **paths})


def _unit_error(error: Exception) -> UnitError:
    """An exception as a UnitError without Hub tokens, as it is shown and logged."""
    trace = redact_tokens(traceback.format_exc())
    if isinstance(error, HubmergeError):
        transient = error.exit_code == _TEMPORARY_FAILURE
        return UnitError(redact_tokens(error.message), error.hint, transient, trace)
    return UnitError(
        redact_tokens(f"It failed unexpectedly: {type(error).__name__}: {error}"),
        "Please report it with the output of --debug.",
        trace=trace,
    )
