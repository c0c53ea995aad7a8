"""How many units per second does the runner of recipes complete? With units that do nothing.

inline   in the process of the runner: its own bookkeeping and the writing of results
local    in worker processes on this machine
ray      on a Ray cluster of this machine, if Ray is installed

Every eleventh unit needs the ten before it. The growth is the time per unit of the largest plan
over that of the plan with 100 units; smaller plans are dominated by start-up.

    python -m benchmarks.runner            five minutes: every result is flushed to disk
    python -m benchmarks.runner --quick    to see that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hubmerge.reproduce.engines.engine import Engine
from hubmerge.reproduce.engines.inline import InlineEngine
from hubmerge.reproduce.engines.local import LocalEngine
from hubmerge.reproduce.engines.ray import LOOPBACK_ONLY, NO_USAGE_STATS, open_ray
from hubmerge.reproduce.runner import run
from hubmerge.reproduce.store import ResultStore
from hubmerge.reproduce.unit import Result, Unit, WorkContext

BUILD = Path(__file__).parents[1] / "build"
OUT = BUILD / "bench-runner.json"
SIZES = (10, 100, 1_000, 10_000)
Row = dict[str, Any]


def perform_trivial(unit: Unit, inputs: Mapping[str, Result], context: WorkContext) -> Result:
    """Return a number, as the results of most units are small."""
    return {"sum": 1 + sum(result["sum"] for result in inputs.values())}


def make_plan(size: int) -> list[Unit]:
    """A plan of so many units, of which every eleventh needs the ten before it."""
    units: list[Unit] = []
    for number in range(size):
        below = units[-10:] if number % 11 == 10 else []
        needs = {str(index): unit for index, unit in enumerate(below)}
        units.append(Unit("trivial", {"number": number}, f"unit {number}", needs))
    return units


def open_engine(name: str, folder: Path) -> Engine:
    from benchmarks.runner import perform_trivial  # by the name that workers find it by

    context = WorkContext(None, "nobody", folder)
    if name == "inline":
        return InlineEngine(perform_trivial, context)
    if name == "ray":
        return open_ray(perform_trivial, context, cores=os.cpu_count())
    return LocalEngine(
        perform_trivial,
        context,
        cores=os.cpu_count() or 1,
        logs=folder,
        environment=dict(os.environ),
    )


def measure(name: str, size: int) -> Row:
    """Seconds of a plan with an engine that has no workers yet, and of a rerun."""
    with tempfile.TemporaryDirectory(prefix="bench-runner-", dir=BUILD) as folder:
        store = ResultStore(Path(folder), "code")
        with closing(open_engine(name, Path(folder))) as engine:
            units = make_plan(size)
            first = _seconds(units, engine, store)
            again = _seconds(make_plan(size), engine, store)
    return {
        "engine": name,
        "units": size,
        "seconds": round(first, 3),
        "units_per_second": round(size / first, 1),
        "seconds_when_known": round(again, 3),
    }


def _seconds(units: Sequence[Unit], engine: Engine, store: ResultStore) -> float:
    started = time.perf_counter()
    outcome = run(units, engine, store)
    assert not outcome.failed
    return time.perf_counter() - started


def main() -> None:
    """Print every row as it is measured, and write all rows."""
    parser = argparse.ArgumentParser(description="Units per second of the runner of recipes.")
    parser.add_argument("--quick", action="store_true")
    sizes = SIZES[:2] if parser.parse_args().quick else SIZES
    os.environ.update(NO_USAGE_STATS | LOOPBACK_ONLY)
    BUILD.mkdir(parents=True, exist_ok=True)
    names = ["inline", "local", *(["ray"] if find_spec("ray") else [])]
    rows = []
    print(f"{'engine':8}{'units':>8}{'seconds':>10}{'units/s':>10}{'known, s':>10}", flush=True)
    for name in names:
        engine_rows: list[Row] = []
        for size in sizes:
            row = measure(name, size)
            engine_rows.append(row)
            print(
                f"{row['engine']:8}{row['units']:8}{row['seconds']:10.2f}"
                f"{row['units_per_second']:10.0f}{row['seconds_when_known']:10.2f}",
                flush=True,
            )
        per_unit = [row["seconds"] / row["units"] for row in engine_rows]
        print(f"{name}: a unit of {sizes[-1]} takes {per_unit[-1] / per_unit[1]:.2f} x one of 100")
        rows += engine_rows
    OUT.write_text(json.dumps({"cpus": os.cpu_count(), "rows": rows}, indent=1) + "\n")
    print(f"written: {OUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
