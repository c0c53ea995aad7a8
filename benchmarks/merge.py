"""The speed of `hubmerge merge` as ratios, measured in one run: whole commands, warm cache.

floor       reading all inputs once (twice for methods that need a number of the whole model) and
            writing the result once to disk, without arithmetic
in memory   the papers' own way: all state dicts in memory with torch, task vectors flattened
mergekit    the same merge by mergekit, if --mergekit names its mergekit-yaml

Every program runs in its own process, reads the same files and writes safetensors. Memory is the
peak of the process without the pages of mapped files.

    make bench                                  97 M parameters, base and 8 experts, 3.5 GB
    python -m benchmarks.merge --preset tiny    seconds, to see that it runs
    python -m benchmarks.merge --mergekit PATH/mergekit-yaml --methods average ties
    python -m benchmarks.merge --preset 0.5b --experts 4     bfloat16, 4.7 GB
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.workload import PRESETS, make_workload

# Our method -> mergekit's, with its parameters for the same work, and how often it must read.
METHODS: dict[str, tuple[str, dict[str, object], int]] = {
    "average": ("linear", {}, 1),
    "task_arithmetic": ("task_arithmetic", {}, 1),
    "ties": ("ties", {"density": 0.2}, 2),
    "dare": ("dare_linear", {"density": 0.2}, 1),
    "dare_ties": ("dare_ties", {"density": 0.2}, 1),
    "breadcrumbs": ("breadcrumbs", {"density": 0.9}, 2),
    "della": ("della", {"density": 0.2}, 1),
    "sce": ("sce", {}, 2),
    "multislerp": ("multislerp", {}, 2),
    "karcher": ("karcher", {}, 2),
    "model_stock": ("model_stock", {}, 2),
}
IN_MEMORY = ("average", "task_arithmetic", "ties")

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

FLOOR = """
import os, sys
from pathlib import Path
times, out, base, *experts = sys.argv[1:]
buffer = bytearray(1 << 20)
for _ in range(int(times)):
    for path in (base, *experts):
        with open(f"{path}/model.safetensors", "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
left = os.path.getsize(f"{base}/model.safetensors")
Path(out).mkdir(exist_ok=True)
with open(f"{out}/model.safetensors", "wb", buffering=0) as file:
    while left > 0:
        left -= file.write(buffer[:left])
    os.fsync(file.fileno())
"""


def measure(command: Sequence[str], out: Path, env: dict[str, str]) -> tuple[float, float]:
    """Wall time in seconds and peak memory in MiB of a command that writes `out`.

    What was written before is on the disk when it starts: it would wait for that at its own flush.
    """
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command[:3])} failed: {errors.decode()[-2000:]}")
    return seconds, peak[0]


def _watch(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    """Keep the highest memory of a process that is not backed by files, in MiB."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
        if lines:
            peak[0] = max(peak[0], int(lines[0].split()[1]) / 1024)
        time.sleep(0.01)


def ours(method: str, out: Path, base: Path, experts: Sequence[Path]) -> list[str]:
    """Our command for a merge."""
    words = [sys.executable, "-m", "hubmerge", "merge", *map(str, experts), "--base", str(base)]
    return [*words, "--method", method, "--out", str(out), "--quiet"]


def mergekits(
    program: str, method: str, dtype: str, out: Path, base: Path, experts: Sequence[Path]
) -> list[str]:
    """mergekit's command for the same merge; writes its configuration beside the result."""
    name, params, _ = METHODS[method]
    models = [{"model": str(e), "parameters": {"weight": 1.0, **params}} for e in experts]
    if name in ("karcher", "model_stock", "sce"):
        models = [{"model": str(e)} for e in experts]
    config: dict[str, object] = {"merge_method": name, "models": models, "dtype": dtype}
    if name not in ("linear", "multislerp", "karcher"):
        config["base_model"] = str(base)
    file = out.with_suffix(".yml")
    file.write_text(yaml.safe_dump(config))
    return [program, str(file), str(out), "--no-copy-tokenizer"]


def main() -> None:
    """Measure every method, the programs in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="97m")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--mergekit", help="path of mergekit-yaml, in an environment of its own")
    parser.add_argument("--inputs", type=Path, help="folder with base, expert0, expert1 ...")
    parser.add_argument("--out", type=Path, help="file for seconds and MiB of every run, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.inputs:
            experts = [options.inputs / f"expert{n}" for n in range(options.experts)]
            base = options.inputs / "base"
        else:
            # In another process, whose memory is not this one's.
            with multiprocessing.Pool(1) as maker:
                base, *experts = maker.apply(
                    make_workload, (Path(scratch), PRESETS[options.preset], options.experts)
                )
        _measure_all(options, Path(scratch), base, experts)


def _measure_all(
    options: argparse.Namespace, scratch: Path, base: Path, experts: Sequence[Path]
) -> None:
    env = {"HUBMERGE_HOME": str(scratch / "home"), "HF_HOME": str(scratch / "hf")}
    inputs = [str(base), *map(str, experts)]
    print(f"{options.preset}, base and {len(experts)} experts; median of {options.runs} runs")
    print(f"{'method':16} {'hubmerge':>18} {'floor':>8} {'x floor':>8} {'again':>8} "
          f"{'in memory':>18} {'mergekit':>18} {'faster':>7}")  # fmt: skip
    results: dict[str, object] = {}
    for method in options.methods:
        rows: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.runs):
            out, reads = scratch / "ours", METHODS[method][2]
            floor = [sys.executable, "-c", FLOOR, str(reads), str(scratch / "floor"), *inputs]
            rows.setdefault("floor", []).append(measure(floor, scratch / "floor", env))
            command = ours(method, out, base, experts)
            rows.setdefault("ours", []).append(measure(command, out, env))
            start = time.perf_counter()
            subprocess.run(command, env=os.environ | env, check=True, capture_output=True)
            rows.setdefault("again", []).append((time.perf_counter() - start, 0.0))
            if options.mergekit:
                out = scratch / "mergekit"
                dtype = PRESETS[options.preset].dtype
                command = mergekits(options.mergekit, method, dtype, out, base, experts)
                rows.setdefault("mergekit", []).append(measure(command, out, env))
        if method in IN_MEMORY and PRESETS[options.preset].dtype == "float32":
            rival = [sys.executable, "-c", RIVAL, method, str(scratch / "rival"), *inputs]
            for _ in range(options.runs):  # at last, as it drives files out of memory
                rows.setdefault("memory", []).append(measure(rival, scratch / "rival", env))
        print(_row(method, rows), flush=True)
        results[method] = rows
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")


def _row(method: str, rows: dict[str, list[tuple[float, float]]]) -> str:
    found = {name: _median(runs) for name, runs in rows.items()}
    cells = {
        name: f"{found[name][0]:7.2f} s {found[name][1]:5.0f} MiB" if name in found else "-"
        for name in ("ours", "memory", "mergekit")
    }
    floor, seconds = found["floor"][0], found["ours"][0]
    faster = f"{found['mergekit'][0] / seconds:.1f}x" if "mergekit" in found else "-"
    return (
        f"{method:16} {cells['ours']:>18} {floor:6.2f} s {seconds / floor:7.1f}x "
        f"{found['again'][0]:6.2f} s {cells['memory']:>18} {cells['mergekit']:>18} {faster:>7}"
    )


def _median(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    seconds, mib = zip(*runs, strict=True)
    return statistics.median(seconds), statistics.median(mib)


if __name__ == "__main__":
    main()
