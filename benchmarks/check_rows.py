"""The speed of `hubmerge tasks --check`, which reads every row: rows in a second, in one run.

check   all rows of a folder of images by `check_task`, on all cores
bare    PIL opens, decodes and converts the same files in one process, one after another

    python -m benchmarks.check_rows
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.cases import BUILD
from hubmerge.tasks.check import check_task
from hubmerge.tasks.lookup import find_task

OUT = BUILD / "bench-check-rows.json"
ROWS, SIDE, REPEATS = 1500, 256, 3


def write_images(folder: Path) -> list[Path]:
    """Two classes of grey images of 16 bits and of colour photographs' size."""
    random, paths = np.random.default_rng(0), []
    for number in range(ROWS):
        name = "odd" if number % 2 else "even"
        path = folder / name / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        depth, kind = (2**16, np.uint16) if number % 4 == 0 else (2**8, np.uint8)
        shape = (SIDE, SIDE) if kind is np.uint16 else (SIDE, SIDE, 3)
        Image.fromarray(random.integers(0, depth, shape).astype(kind)).save(path, compress_level=1)
        paths.append(path)
    return paths


def read_bare(paths: list[Path]) -> None:
    """Decode the files as a loop without checks would."""
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB")


def rows_per_second(work: Callable[[], object]) -> float:
    """Rows in a second of wall time."""
    began = time.perf_counter()
    work()
    return ROWS / (time.perf_counter() - began)


def main() -> None:
    """Print the two speeds and their ratio, and write them as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        paths = write_images(folder)
        task = find_task(str(folder))
        check_task(task)  # the processes and imports of the first time
        pairs = [
            (rows_per_second(lambda: check_task(task)), rows_per_second(lambda: read_bare(paths)))
            for _ in range(REPEATS)
        ]
    check, bare = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"check {check:.0f} rows/s, bare {bare:.0f} rows/s, ratio {ratio:.2f}")
    BUILD.mkdir(exist_ok=True)
    value = {"rows": ROWS, "side": SIDE, "check": check, "bare": bare, "ratio": ratio}
    OUT.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
