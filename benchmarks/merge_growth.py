"""Do the time and memory of a merge grow with parameters and experts? Up to 4 billion parameters.

Base and experts are Llama-shaped bfloat16 models in sparse files: of every part that the engine
reads at a time, 128 KiB, one page holds values and the rest is a hole, which reads as zeros. So
every part is changed and merged, while 24 GB of inputs take less than 1 GB of disk; the result is
written in full, 8 GB. Whole commands are measured, without remembered hashes. CPU seconds are those
of the process and its threads; memory is its peak without the pages of mapped files. Lines are
compared as CPU seconds per billion parameters that are read and written: 1.0 is linear growth.

    python -m benchmarks.merge_growth --out benchmarks/results/merge-growth.json
    python -m benchmarks.merge_growth --hidden 1024      a sixteenth of the parameters
    python -m benchmarks.merge_growth --hidden 64        seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import struct
import sys
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.merge import measure, ours
from benchmarks.workload import Preset, tensor_shapes

METHODS = {"average": (), "ties": ("--set", "density=0.02")}  # 3 % of the entries are changed
LAYERS, EXPERTS = (1, 3, 7, 16), (2, 4, 8)
PAGE, PART = 4096, 1 << 17  # bytes
PAGES = 64  # that differ, of each model

Row = dict[str, Any]


def sparse_model(folder: Path, preset: Preset, number: int) -> Path:
    """Write a model with values in one page of each part; models 1, 2 ... are near model 0."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensor_shapes(preset):
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    pages = _pages(number)
    with open(folder / "model.safetensors", "wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        first = len(text) + 8
        file.truncate(first + end)
        for index, position in enumerate(range(0, end - PAGE, PART)):
            os.pwrite(file.fileno(), pages[index % PAGES], first + position)
        os.fsync(file.fileno())
    return folder


def _pages(number: int) -> list[bytes]:
    base = np.random.default_rng(0).normal(0, 0.02, (PAGES, PAGE // 2))
    change = np.random.default_rng(number).normal(0, 0.004, base.shape) if number else 0
    return [page.tobytes() for page in (base + change).astype(ml_dtypes.bfloat16)]


def parameters(preset: Preset) -> int:
    return sum(prod(shape) for _, shape in tensor_shapes(preset))


def measure_case(scratch: Path, preset: Preset, count: int) -> list[Row]:
    """Measure every method with `count` experts; the files are deleted afterwards."""
    folder = scratch / "models"
    base, *experts = [sparse_model(folder / str(n), preset, n) for n in range(count + 1)]
    rows = []
    for method, words in METHODS.items():
        out, home = scratch / "merged", scratch / "home"
        env = {"HUBMERGE_HOME": str(home), "HF_HOME": str(scratch / "hf")}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds, mib = measure([*ours(method, out, base, experts), *words], out, env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        size = parameters(preset)
        rows.append(
            {
                "method": method,
                "parameters": size,
                "experts": count,
                "wall_s": round(seconds, 2),
                "cpu_s": round(cpu, 2),
                "cpu_s_per_billion": round(cpu / (size * (count + 2) / 1e9), 3),
                "mib": round(mib, 1),
            }
        )
        shutil.rmtree(out)
        shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(folder)
    return rows


def main() -> None:
    """Print each row as it is measured, and the growth of each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4096, help="width of the model")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--experts", type=int, nargs="+", default=EXPERTS)
    parser.add_argument("--scratch", type=Path, help="folder for files of up to 10 GB")
    parser.add_argument("--out", type=Path, help="file for all rows, as JSON")
    options = parser.parse_args()
    hidden = options.hidden
    inner, vocabulary = hidden * 7 // 2, hidden * 125 // 16  # 14,336 and 32,000 for 4,096
    sizes = [Preset(hidden, inner, layers, vocabulary) for layers in options.layers]
    fewest = min(options.experts)
    cases = [(size, fewest) for size in sizes]
    cases += [(sizes[0], count) for count in options.experts if count != fewest]
    rows: list[Row] = []
    print(f"{'method':10}{'parameters':>16}{'experts':>9}{'CPU s':>9}{'per billion':>13}{'MiB':>7}")
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for preset, count in cases:
            for row in measure_case(Path(scratch), preset, count):
                print(
                    f"{row['method']:10}{row['parameters']:>16,}{row['experts']:>9}"
                    f"{row['cpu_s']:>9.2f}{row['cpu_s_per_billion']:>13.2f}{row['mib']:>7.0f}",
                    flush=True,
                )
                rows.append(row)
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    _print_growth(rows, sizes, fewest)


def _print_growth(rows: Sequence[Row], sizes: Sequence[Preset], fewest: int) -> None:
    """What each method needs for the largest case, over the smallest one."""
    smallest, largest = parameters(sizes[0]), parameters(sizes[-1])
    for method in METHODS:
        own = {(r["parameters"], r["experts"]): r for r in rows if r["method"] == method}
        most = max(count for _, count in own)
        for what, key in (
            (f"{largest / smallest:.1f} x the parameters", (largest, fewest)),
            (f"{most / fewest:.1f} x the experts", (smallest, most)),
        ):
            first, last = own[smallest, fewest], own[key]
            ratios = [last[k] / first[k] for k in ("cpu_s", "cpu_s_per_billion")]
            added = last["mib"] - first["mib"]
            print(f"{method}: {what}: {ratios[0]:.1f} x the CPU time ({ratios[1]:.2f} for each "
                  f"parameter read and written), {added:+.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
