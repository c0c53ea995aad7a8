"""The cost of a layer with experts compared with peft and mttl, in one run.

Shapes are those of CLIP ViT-B/32: 50 tokens per image. `bare` is the linear layer without experts.
The rivals are peft's Arrow, and computing every expert for every token, as mttl does. All give the
same outputs, which is checked, and train the same weights. The goals are for the default, top 2 of
8 at rank 8: a forward pass within 1.5 times the bare one, and no pass slower than peft's.

time     CPU seconds of one thread, the contestants in turn; the median of the ratios of each turn.
         A pass is `forward` (no gradients) or `training` (forward and backward).
memory   peak bytes of tensors during a pass without weights and input, from torch's profiler:
         exact, and the same in every run.

    python -m benchmarks.moe_layer           three minutes on an idle machine
    python -m benchmarks.moe_layer --quick   seconds, to see that it runs
    python -m benchmarks.moe_layer --json    for machines
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.moe_rivals import Experts, Forward, make_contestants

SHAPES = ((768, 768), (768, 3072), (3072, 768))
PICTURES, TOKENS = (1, 8, 32), 50
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One contestant at one shape, in one kind of pass."""

    width: int
    out: int
    pictures: int
    kind: str
    contestant: str
    ms: float
    over_bare: float
    over_peft: float
    mib: float

    @property
    def verdict(self) -> str:
        """Whether hubmerge meets the goals; empty for the others."""
        if self.contestant != "hubmerge":
            return ""
        met = self.over_peft <= 1 and (self.kind == "training" or self.over_bare <= 1.5)
        return "met" if met else "NOT MET"


def measure_passes(experts: Experts, pictures: int, turns: int, folder: Path) -> Iterator[Row]:
    """Both kinds of pass of all contestants over `pictures` pictures."""
    forwards = make_contestants(experts, folder)
    x = torch.randn(pictures, TOKENS, experts.width)
    for kind, make in (("forward", _forward), ("training", _training)):
        works = {name: make(forward, x, experts.out) for name, forward in forwards.items()}
        seconds = time_in_turns(works, turns)
        for name, work in works.items():
            yield Row(
                experts.width,
                experts.out,
                pictures,
                kind,
                name,
                median(seconds[name]) * 1e3,
                _ratio(seconds[name], seconds["bare"]),
                _ratio(seconds[name], seconds["peft arrow"]),
                peak_bytes(work) / 2**20,
            )


def _forward(forward: Forward, x: torch.Tensor, out: int) -> Work:
    return torch.no_grad()(lambda: forward(x))


def _training(forward: Forward, x: torch.Tensor, out: int) -> Work:
    inner, toward = x.clone().requires_grad_(), torch.randn(*x.shape[:-1], out)
    return lambda: forward(inner).backward(toward)


def time_in_turns(works: dict[str, Work], turns: int) -> dict[str, list[float]]:
    """CPU seconds of each in every turn but the first, in which memory is allocated."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            began = time.thread_time()
            work()
            if turn:
                seconds[name].append(time.thread_time() - began)
    return seconds


def peak_bytes(work: Work) -> int:
    """The peak bytes of tensors that `work` creates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def table(rows: list[Row]) -> Table:
    """The rows as a table, with a line between shapes."""
    shown = Table("shape", "pictures", "pass", "", title="CPU time and peak memory of a pass")
    for head in ("ms", "over bare", "over peft", "MiB", "goal"):
        shown.add_column(head, justify="right")
    for row in rows:
        first = row.contestant == "bare"
        if first:
            shown.add_section()
        where = f"{row.width} -> {row.out}", str(row.pictures), row.kind
        numbers = f"{row.ms:.2f}", f"{row.over_bare:.2f}", f"{row.over_peft:.2f}", f"{row.mib:.1f}"
        shown.add_row(*(where if first else ("", "", "")), row.contestant, *numbers, row.verdict)
    return shown


def main() -> None:
    """Measure all shapes and print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one picture, three turns")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    turns, sizes = (3, PICTURES[:1]) if options.quick else (options.turns, PICTURES)
    rows = []
    for width, out in SHAPES:
        experts = Experts(width, out, options.experts, options.rank, options.top_k)
        for pictures in sizes:
            with tempfile.TemporaryDirectory() as folder:
                rows += measure_passes(experts, pictures, turns, Path(folder))
            print(f"{width} -> {out}, {pictures} pictures: done", file=sys.stderr)
    if options.json:
        print(json.dumps({**vars(options), "rows": [asdict(row) for row in rows]}, indent=2))
        return
    Console(width=110).print(table(rows))


if __name__ == "__main__":
    main()
