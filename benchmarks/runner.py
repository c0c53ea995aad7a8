"""How many units a second does the runner of recipes walk? With units that are made in no time.

inline   in the process of the runner: its own bookkeeping, and the writing of results
local    in worker processes on this machine
ray      on a Ray cluster of this machine, if Ray is installed

A tenth of the units need ten others each. Near-linear growth is the time per unit of the largest
plan over that of the smallest which is not all start-up (100 units).

    python -m benchmarks.runner            five minutes or so: results are forced to disk one by one
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
from hubmerge.reproduce.engines.inline import Inline
from hubmerge.reproduce.engines.local import Local
from hubmerge.reproduce.engines.ray import PRIVATE, QUIET, open_ray
from hubmerge.reproduce.runner import run
from hubmerge.reproduce.store import Store
from hubmerge.reproduce.unit import Result, Shop, Unit

BUILD = Path(__file__).parents[1] / "build"
OUT = BUILD / "bench-runner.json"
SIZES = (10, 100, 1_000, 10_000)
Row = dict[str, Any]


def trivial(unit: Unit, inputs: Mapping[str, Result], shop: Shop) -> Result:
    """A number, as most units come to little more."""
    return {"sum": 1 + sum(result["sum"] for result in inputs.values())}


def plan(size: int) -> list[Unit]:
    """So many units, of which every eleventh needs the ten before it."""
    units: list[Unit] = []
    for number in range(size):
        below = units[-10:] if number % 11 == 10 else []
        needs = {str(place): unit for place, unit in enumerate(below)}
        units.append(Unit("trivial", {"number": number}, f"unit {number}", needs))
    return units


def engine(name: str, folder: Path) -> Engine:
    from benchmarks.runner import trivial  # by the name that workers find it by

    shop = Shop(None, "nobody", folder)
    if name == "inline":
        return Inline(trivial, shop)
    if name == "ray":
        return open_ray(trivial, shop, cores=os.cpu_count())
    return Local(
        trivial, shop, cores=os.cpu_count() or 1, logs=folder, environment=dict(os.environ)
    )


def measure(name: str, size: int) -> Row:
    """Seconds of a plan, with an engine that stands but has no workers yet; and of a rerun."""
    with tempfile.TemporaryDirectory(prefix="bench-runner-", dir=BUILD) as folder:
        store = Store(Path(folder), "code")
        with closing(engine(name, Path(folder))) as its:
            units = plan(size)
            first = _seconds(units, its, store)
            again = _seconds(plan(size), its, store)
    return {
        "engine": name,
        "units": size,
        "seconds": round(first, 3),
        "units_per_second": round(size / first, 1),
        "seconds_when_known": round(again, 3),
    }


def _seconds(units: Sequence[Unit], its: Engine, store: Store) -> float:
    begun = time.perf_counter()
    outcome = run(units, its, store)
    assert not outcome.failed
    return time.perf_counter() - begun


def main() -> None:
    """Print every row as it is measured, and keep all."""
    options = argparse.ArgumentParser(description="Units per second of the runner of recipes.")
    options.add_argument("--quick", action="store_true")
    sizes = SIZES[:2] if options.parse_args().quick else SIZES
    os.environ.update(QUIET | PRIVATE)
    BUILD.mkdir(parents=True, exist_ok=True)
    names = ["inline", "local", *(["ray"] if find_spec("ray") else [])]
    rows = []
    print(f"{'engine':8}{'units':>8}{'seconds':>10}{'units/s':>10}{'known, s':>10}", flush=True)
    for name in names:
        its: list[Row] = []
        for size in sizes:
            row = measure(name, size)
            its.append(row)
            print(
                f"{row['engine']:8}{row['units']:8}{row['seconds']:10.2f}"
                f"{row['units_per_second']:10.0f}{row['seconds_when_known']:10.2f}",
                flush=True,
            )
        per_unit = [row["seconds"] / row["units"] for row in its]
        print(f"{name}: a unit of {sizes[-1]} takes {per_unit[-1] / per_unit[1]:.2f} x one of 100")
        rows += its
    OUT.write_text(json.dumps({"cpus": os.cpu_count(), "rows": rows}, indent=1) + "\n")
    print(f"written: {OUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
