"""The CPU seconds of starting up, as ratios to `hf --help`: medians of interleaved runs.

merge --help     our help of the command
rerun            our merge of eight tiny experts that is there, a whole command

    python -m benchmarks.start_up --out benchmarks/results/start-up.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.merge import ours
from benchmarks.workload import PRESETS, make_workload


def cpu_seconds(command: Sequence[str]) -> float:
    """The CPU time of a command, with that of the processes it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Run the commands in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the seconds, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, *experts = make_workload(folder, PRESETS["tiny"], 8)
        merge = ours("average", folder / "merged", base, experts)
        commands = {
            "hf --help": [str(Path(sys.executable).with_name("hf")), "--help"],
            "merge --help": [sys.executable, "-m", "hubmerge", "merge", "--help"],
            "rerun": merge,
        }
        for command in commands.values():  # the merge is made, and modules are compiled
            cpu_seconds(command)
        turns = [{name: cpu_seconds(words) for name, words in commands.items()}
                 for _ in range(arguments.runs)]  # fmt: skip
    medians = {name: statistics.median(turn[name] for turn in turns) for name in commands}
    if arguments.out:
        arguments.out.write_text(json.dumps({"cpu_s": medians, "turns": turns}, indent=1) + "\n")
    for case, seconds in medians.items():
        print(f"{case}: {seconds:.2f} s, {seconds / medians['hf --help']:.2f} of hf --help")


if __name__ == "__main__":
    main()
