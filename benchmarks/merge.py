"""The speed of `hubmerge merge` compared with merging in memory, in one run.

The rival merges like the papers' own code: all state dicts in memory with torch, the task vectors
flattened. Both run in their own process, read the same files and write one safetensors file. `read`
is the minimum: reading all inputs once.

    make bench                                  97 M parameters, base and 4 experts, 2 GB
    python -m benchmarks.merge --preset tiny    seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.workload import PRESETS, make_workload

METHODS = ("average", "task_arithmetic", "ties")

OURS = """
import sys
from pathlib import Path
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.checkpoint import open_checkpoint
name, out, base, *experts = sys.argv[1:]
chosen = method(name)
plan = MergePlan(
    open_checkpoint(Path(base)),
    tuple(Expert(open_checkpoint(Path(path)), path) for path in experts),
    chosen,
    parse_params(chosen, {}),
)
merge(plan, Path(out), replace=True)
"""

RIVAL = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
name, out, base, *experts = sys.argv[1:]
start = load_file(f"{base}/model.safetensors")
keys = sorted(start)
flat = lambda state: torch.cat([state[key].reshape(-1) for key in keys])
zero = flat(start)
taus = torch.stack([flat(load_file(f"{path}/model.safetensors")) - zero for path in experts])
if name == "average":
    merged = taus.mean(0)
elif name == "task_arithmetic":
    merged = taus.sum(0)
else:
    count = taus.shape[1]
    rank = count - int(count * 0.2)
    limits = taus.abs().kthvalue(rank, dim=1, keepdim=True).values
    taus = taus * (taus.abs() >= limits)
    sign = torch.sign(taus.sum(0))
    sign[sign == 0] = torch.sign(sign.sum())
    agree = torch.where(sign > 0, taus > 0, taus < 0)
    taus = taus * agree
    merged = taus.sum(0) / (taus != 0).sum(0).clamp(min=1)
zero += merged
values, done = {}, 0
for key in keys:
    size = start[key].numel()
    values[key] = zero[done : done + size].view(start[key].shape).clone()
    done += size
Path(out).mkdir(exist_ok=True)
save_file(values, f"{out}/model.safetensors")
"""

READ = """
import sys
for path in sys.argv[3:]:
    with open(f"{path}/model.safetensors", "rb") as file:
        while file.read(1 << 20):
            pass
"""


def measure(program: str, words: list[str]) -> tuple[float, float]:
    """Wall time in seconds and peak memory in MiB of a separate process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, *words])
    _, status, usage = _wait(process.pid)
    if status:
        sys.exit(f"a measured process failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def _wait(pid: int) -> tuple[int, int, resource.struct_rusage]:
    import os

    return os.wait4(pid, 0)


def main() -> None:
    """Measure every method three times, the two programs in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="97m")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        # In another process: a child's peak memory includes what its parent has when it forks.
        with multiprocessing.Pool(1) as maker:
            folders = maker.apply(
                make_workload, (Path(scratch), PRESETS[options.preset], options.experts)
            )
        inputs = [str(folder) for folder in folders]
        floor = min(measure(READ, ["read", "-", *inputs])[0] for _ in range(options.runs))
        print(
            f"{options.preset}, {options.experts} experts; reading all inputs once: {floor:.2f} s"
        )
        print(f"{'method':16} {'hubmerge':>20} {'in memory, torch':>20} {'time':>8} {'memory':>8}")
        for method in METHODS:
            ours, rival = [], []
            for _ in range(options.runs):
                ours.append(measure(OURS, [method, f"{scratch}/ours", *inputs]))
                rival.append(measure(RIVAL, [method, f"{scratch}/rival", *inputs]))
            print(_row(method, ours, rival))


def _row(method: str, ours: list[tuple[float, float]], rival: list[tuple[float, float]]) -> str:
    (our_s, our_mib), (their_s, their_mib) = _median(ours), _median(rival)
    return (
        f"{method:16} {our_s:8.2f} s {our_mib:5.0f} MiB {their_s:8.2f} s {their_mib:5.0f} MiB "
        f"{their_s / our_s:7.1f}x {their_mib / our_mib:7.1f}x"
    )


def _median(runs: list[tuple[float, float]]) -> tuple[float, float]:
    seconds, mib = zip(*runs, strict=True)
    return statistics.median(seconds), statistics.median(mib)


if __name__ == "__main__":
    main()
