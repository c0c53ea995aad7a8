"""A unit on its way to a worker and its end on the way back, as text: no pickles, same bits.

Every engine sends both through here, so a result is the same whichever engine brought it.
"""

from __future__ import annotations

import importlib
import json
import re
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubmerge.errors import HubmergeError
from hubmerge.reproduce.engines.engine import Done, Perform, Trouble
from hubmerge.reproduce.unit import Result, Shop, Unit

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_TRY_AGAIN = 75  # the exit code of errors that time may mend


def name_of(perform: Perform) -> str:
    """The name by which another process finds a function: module:name."""
    return f"{perform.__module__}:{perform.__qualname__}"


def find(name: str) -> Perform:
    """The function of that name."""
    module, _, function = name.partition(":")
    perform: Perform = getattr(importlib.import_module(module), function)
    return perform


def say_job(unit: Unit, inputs: Mapping[str, Result], shop: Shop) -> str:
    """A unit, what it is made from and where, in one line."""
    said = {
        "unit": _said(unit),
        "needs": {role: _said(needed) for role, needed in unit.needs.items()},
        "inputs": dict(inputs),
        "shop": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(shop).items()
        },
    }
    return json.dumps(said)


def do_job(text: str, perform: Perform) -> str:
    """Perform what `say_job` said, and say how it came out, in one line; raises nothing."""
    said = json.loads(text)
    key = said["unit"]["key"]
    begun = time.perf_counter()
    try:
        result = perform(_unit(said), said["inputs"], _shop(said["shop"]))
        return json.dumps({"key": key, "result": result, "seconds": time.perf_counter() - begun})
    except Exception as error:
        return refuse_job(text, _trouble(error))


def refuse_job(text: str, trouble: Trouble) -> str:
    """Say, in one line, why a job has no result."""
    return json.dumps({"key": json.loads(text)["unit"]["key"], "trouble": vars(trouble)})


def read_done(text: str | bytes) -> Done:
    """The end that `do_job` said."""
    said = json.loads(text)
    if "trouble" in said:
        return Done(said["key"], trouble=Trouble(**said["trouble"]))
    return Done(said["key"], said["seconds"], said["result"])


def _said(unit: Unit) -> dict[str, Any]:
    return {
        "key": unit.key,
        "kind": unit.kind,
        "params": unit.params,
        "about": unit.about,
        "cpus": unit.cpus,
        "gpus": unit.gpus,
        "steps": unit.steps,
    }


def _unit(said: Mapping[str, Any]) -> Unit:
    """The unit with those it needs, but not what they need: a plan is deep, and a job small."""
    needs = {role: _alone(needed, {}) for role, needed in said["needs"].items()}
    return _alone(said["unit"], needs)


def _alone(said: Mapping[str, Any], needs: Mapping[str, Unit]) -> Unit:
    fields = {name: value for name, value in said.items() if name != "key"}
    unit = Unit(**fields, needs=needs)
    vars(unit)["key"] = said["key"]  # where the cached property keeps it
    return unit


def _shop(said: Mapping[str, Any]) -> Shop:
    return Shop(**{**said, "folder": Path(said["folder"]), "recipes": Path(said["recipes"])})


def _trouble(error: Exception) -> Trouble:
    """What an error comes to, in words that hold no token wherever they are shown or logged."""
    trace = _without_tokens(traceback.format_exc())
    if isinstance(error, HubmergeError):
        passing = error.exit_code == _TRY_AGAIN
        return Trouble(_without_tokens(error.message), error.hint, passing, trace)
    return Trouble(
        _without_tokens(f"It failed in a way it should not: {type(error).__name__}: {error}"),
        "Please report it with what --debug prints.",
        trace=trace,
    )


def _without_tokens(text: str) -> str:
    return _TOKEN.sub("hf_***", text)
