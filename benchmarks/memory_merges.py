"""The CPU seconds of a merge in memory, as `hubmerge select` measures many: a ViT-B/32, 8 tasks.

first         the first merge of these experts, which reads them
other         a merge of other steps of the same experts, half of which are read
again         a merge with another density (or weight), of experts that are in memory
scale         a further scale of a merge that was made

The last two are medians of seven: the first of them get memory from the system that the later ones
use again, as the merges of a search do.

Each ends with all values copied into a model in memory. CPU seconds are of all threads; they count
less of what other programs do than wall time.

    python -m benchmarks.memory_merges --out benchmarks/results/memory-merges.json
    python -m benchmarks.memory_merges --width 64     seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import save_file

from hubmerge.merging.registry import Method, method
from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import Choice, plain_choice
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool
from hubmerge.source import Source
from hubmerge.tasks.lookup import find_task
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

METHODS = ("task_arithmetic", "ties", "dare")
LAYERS, PATCH, POSITIONS = 12, 32, 50
TASKS = ("mnist", "fashion", "hebrew", "texture", "housenum", "latin", "greek", "kana")
AGAIN = 7  # merges of experts in memory
Shape = tuple[int, ...]
Seconds = tuple[float, float]  # CPU and wall


def tensor_shapes(width: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of CLIP's image tower, 88 million parameters at width 768."""
    yield "visual.class_embedding", (width,)
    yield "visual.positional_embedding", (POSITIONS, width)
    yield "visual.conv1.weight", (width, 3, PATCH, PATCH)
    for layer in range(LAYERS):
        block = f"visual.transformer.resblocks.{layer}"
        for name, shape in (
            ("attn.in_proj", (3 * width, width)),
            ("attn.out_proj", (width, width)),
            ("mlp.c_fc", (4 * width, width)),
            ("mlp.c_proj", (width, 4 * width)),
            ("ln_1", (width,)),
            ("ln_2", (width,)),
        ):
            yield f"{block}.{name}.weight", shape
            yield f"{block}.{name}.bias", shape[:1]
    yield "visual.ln_post.weight", (width,)
    yield "visual.proj", (width, width * 2 // 3)


def write_model(folder: Path, width: int, number: int) -> Checkpoint:
    """Write a model; those of another number than 0 are near it."""
    folder.mkdir()
    tensors = {}
    for index, (name, shape) in enumerate(tensor_shapes(width)):
        values = _draw(index, 0, shape) * np.float32(0.02)
        if number:
            values += _draw(index, number, shape) * np.float32(0.001)
        tensors[name] = values
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def _draw(index: int, number: int, shape: Shape) -> np.ndarray:
    return np.random.Generator(np.random.SFC64([index, number])).standard_normal(shape, np.float32)


def make_pool(folder: Path, width: int) -> Pool:
    """A base and two steps of each of eight experts."""
    tasks = tuple(find_task(f"mini-{name}") for name in TASKS)
    checkpoints, candidates = {}, []
    for number, task in enumerate(tasks):
        steps = []
        for step in (1, 2):
            label = f"bench/{task.name}@step{step}"
            sha = hashlib.sha1(label.encode()).hexdigest()
            checkpoints[sha] = write_model(folder / sha, width, 2 * number + step)
            steps.append(Candidate(Source(label, sha, "", step, task.id), None))
        candidates.append(tuple(steps))
    base = write_model(folder / "base", width, 0)
    return Pool(
        base=Source("bench/base@main", hashlib.sha1(b"base").hexdigest(), ""),
        base_checkpoint=base,
        tasks=tasks,
        candidates=tuple(candidates),
        open=lambda candidate: checkpoints[candidate.source.sha],
    )


def measure(merger: MemoryMerger, choice: Choice, model: dict[str, np.ndarray]) -> Seconds:
    """CPU and wall seconds of a merge into a model."""
    cpu, wall = time.process_time(), time.perf_counter()
    for name, values in merger.merged_tensors(choice):
        np.copyto(model[name], values)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure_method(pool: Pool, name: str, runs: int) -> dict[str, Seconds]:
    """The median seconds of each kind of merge."""
    chosen, base = method(name), pool.base_checkpoint
    model = {tensor: base.read(tensor) for tensor in base.index}
    found: dict[str, list[Seconds]] = {"first": [], "other": [], "again": [], "scale": []}
    for _ in range(runs):
        merger = MemoryMerger(pool, chosen)
        choice = plain_choice((0,) * len(TASKS), chosen.params().model_dump())
        found["first"].append(measure(merger, choice, model))
        other = plain_choice((0, 1) * (len(TASKS) // 2), chosen.params().model_dump())
        found["other"].append(measure(merger, other, model))
        for number in range(AGAIN):
            again = _other_settings(choice, chosen, number)
            found["again"].append(measure(merger, again, model))
            found["scale"].append(measure(merger, again.with_params(scale=0.3), model))
    return {
        kind: (median(cpu for cpu, _ in rows), median(wall for _, wall in rows))
        for kind, rows in found.items()
    }


def _other_settings(choice: Choice, chosen: Method, number: int) -> Choice:
    """The choice with another density than the default and each other, or another weight."""
    if "density" in chosen.params.model_fields:
        return choice.with_params(density=0.1 + number / 100)
    return choice.with_weight(number, 0.5)


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=768, help="width of the model")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--out", type=Path, help="file for the seconds, as JSON")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(Path(folder), options.width)
        for name in options.methods:
            results[name] = measure_method(pool, name, options.runs)
            cells = (
                f"{kind} {cpu:.2f} ({wall:.2f})" for kind, (cpu, wall) in results[name].items()
            )
            print(f"{name:16} CPU s (wall s): {', '.join(cells)}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
