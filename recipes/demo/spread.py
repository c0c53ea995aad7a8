"""The main job of the demo for several seeds and sets of CPU instructions, and its table.

    python -m recipes.demo.spread run                     # seeds 0 to 9, default and avx2
    python -m recipes.demo.spread run --seeds 3,4 --sets avx512
    python -m recipes.demo.spread table                   # write the table into README.md

A run is `scripts/demo --main` in a folder of its own, below the repository, and one line of
spread.jsonl. What has a line is not run again, so that the same command resumes. `hubmerge` must be
on the PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock
from recipes.studies.pages import format_mean, insert_table, markdown_table

ROOT = Path(__file__).parents[2]
LINES = Path(__file__).with_name("spread.jsonl")
README = ROOT / "README.md"
MODELS = ("ties-last", "ties-uniform", "ties-chosen")
# What torch's own kernels, oneDNN and MKL may use; another set rounds other sums.
SETS: Mapping[str, Mapping[str, str]] = {
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
Line = Mapping[str, Any]


def run_all(seeds: Sequence[int], sets: Sequence[str], lines: Path, work: Path) -> None:
    """Run what has no line yet, and append its line."""
    for seed in seeds:
        for name in sets:
            if (seed, name) in {(line["seed"], line["set"]) for line in read_lines(lines)}:
                continue
            line = run_once(seed, name, work / f"{name}-{seed}")
            with lines.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line)}\n")
            print(json.dumps(line), flush=True)


def run_once(seed: int, name: str, build: Path) -> Line:
    """Run the demo's main job in a folder under the repository, which is removed afterwards."""
    environment = {
        **os.environ, **SETS[name], "SEED": str(seed), "BUILD": str(build.relative_to(ROOT)),
    }  # fmt: skip
    build.mkdir(parents=True, exist_ok=True)
    started, before = time.monotonic(), os.times()
    with (build / "demo.log").open("w") as log:
        subprocess.run(
            [ROOT / "scripts" / "demo", "--main"],
            env=environment, stdout=log, stderr=subprocess.STDOUT, check=True,
        )  # fmt: skip
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    line = {
        "seed": seed,
        "set": name,
        **describe_lock(parse_lock((build / "demo" / "hubmerge.lock").read_bytes(), "the lock")),
        "test": mean_accuracies(json.loads((build / "demo" / "test.json").read_bytes())),
        "seconds": round(time.monotonic() - started),
        "cpu_seconds": round(cpu),
    }
    shutil.rmtree(build)
    return line


def describe_lock(lock: Lock) -> dict[str, Any]:
    """What a selection chose, and its gain on validation with the ends of its interval."""
    chosen = lock.pick()
    return {
        "policy": lock.chosen,
        "steps": [expert.step for expert in chosen.experts],
        "params": {name: chosen.params[name] for name in ("scale", "density")},
        "conclusive": lock.conclusive,
        "gain": chosen.gain,
        "versions": {name: lock.versions[name] for name in ("hubmerge", "torch")},
    }


def mean_accuracies(scores: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Name of a model -> its mean accuracy over the tasks."""
    values: dict[str, list[float]] = {}
    for score in scores:
        name = Path(score["label"].partition("@")[0]).name
        values.setdefault(name, []).append(score["value"])
    return {name: round(sum(of_model) / len(of_model), 6) for name, of_model in values.items()}


def read_lines(path: Path) -> list[Line]:
    """The lines of a file of runs; none if it does not exist."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []


def render_table(lines: Iterable[Line]) -> str:
    """A line for each set of instructions: test accuracies over seeds, and how often they agree.

    Without runs it is a sentence.
    """
    by_set: dict[str, list[Line]] = {}
    for line in lines:
        by_set.setdefault(line["set"], []).append(line)
    if not by_set:
        return "Not run yet; `python -m recipes.demo.spread run` runs it."
    head = [
        "CPU instructions", "seeds", "last steps", "best common step", "chosen", "gain over last",
        "least gain", "better on test", "conclusive on validation",
    ]  # fmt: skip
    table_lines = [_table_line(name, by_set[name]) for name in SETS if name in by_set]
    return markdown_table(head, table_lines)


def _table_line(name: str, runs: Sequence[Line]) -> list[str]:
    last, uniform, chosen = ([run["test"][model] for run in runs] for model in MODELS)
    gains = [best - rival for best, rival in zip(chosen, last, strict=True)]
    count = len(runs)
    return [
        name, str(count), format_mean(last), format_mean(uniform), format_mean(chosen),
        format_mean(gains, sign=True), f"{100 * min(gains):+.1f}",
        f"{sum(gain > 0 for gain in gains)} of {count}",
        f"{sum(run['conclusive'] for run in runs)} of {count}",
    ]  # fmt: skip


def render_readme(page: str, lines: Iterable[Line]) -> str:
    """README.md with the table."""
    return insert_table(page, "demo", render_table(lines))


def _parse_seeds(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    if dash:
        return list(range(int(first), int(last) + 1))
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Run the study, or write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--seeds", default="0-9", type=_parse_seeds, help="0-9, or 3,4")
    parser.add_argument("--sets", default="default,avx2", help=f"of {', '.join(SETS)}")
    parser.add_argument("--lines", default=LINES, type=Path, help="the file of runs")
    parser.add_argument("--work", default=ROOT / "build" / "spread", type=Path)
    options = parser.parse_args()
    sets = options.sets.split(",")
    if unknown := [name for name in sets if name not in SETS]:
        parser.error(f"there is no set {unknown[0]!r}; use one of {', '.join(SETS)}")
    if options.action == "run":
        run_all(options.seeds, sets, options.lines, options.work.resolve())
    else:
        README.write_text(render_readme(README.read_text(), read_lines(options.lines)))


if __name__ == "__main__":
    main()
