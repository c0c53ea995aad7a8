"""Launch scripts: sound bash, every unit once, each level after those it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from hubmerge.errors import UsageError
from hubmerge.reproduce.emit import Batch, batches, levels
from hubmerge.reproduce.emit_jobs import hf_jobs
from hubmerge.reproduce.emit_slurm import slurm
from hubmerge.reproduce.plan_cost import Pace
from hubmerge.reproduce.unit import Unit, with_needs
from tests.reproduce.trivial import unit

_ASSUMED = SimpleNamespace(seconds_per_step=1.0, seconds_per_merge=600.0, bytes_per_step=1e6)
_COMMAND = "hubmerge run recipes/fft --profile paper --work 'shared folder'"


def plan() -> list[Unit]:
    """Two levels: nine units of ten minutes on a GPU, and one on CPUs of them all."""
    firsts = [unit(f"a{number}", cpus=8, gpus=1) for number in range(9)]
    return with_needs([unit("top", *firsts, cpus=2)])


def pieces_of(units: list[Unit], most: int = 100) -> list[Batch]:
    pace = Pace({one.key: "vision" for one in units}, {"vision": _ASSUMED})
    return batches(units, pace, most)


def scripts() -> dict[str, str]:
    made = pieces_of(plan())
    return {
        "slurm": slurm(made, _COMMAND, "fft", "shared folder"),
        "hf-jobs": hf_jobs(
            made, "hubmerge run /recipes/fft --profile paper --work /work", name="fft",
            owner="someone", recipes="recipes", folders=["fft-paper"], version="0.1.0",
        ),
    }  # fmt: skip


def test_levels_are_what_waits_for_each_other() -> None:
    a, b = unit("a"), unit("b")
    c = unit("c", a)
    top = unit("top", b, c)
    found = levels(with_needs([top]))
    assert [sorted(one.about for one in level) for level in found] == [["a", "b"], ["c"], ["top"]]
    assert levels([top]) == [[top]]  # what it needs is there


def test_pieces_fill_an_hour_and_arrays_have_an_end() -> None:
    units = plan()
    first, last = pieces_of(units)
    assert (first.level, first.cpus, first.gpus) == (0, 8, 1)
    assert [len(piece) for piece in first.pieces] == [6, 3]
    assert first.limit_s == 3 * 3600
    assert (last.level, last.gpus, last.limit_s) == (1, 0, 1800)
    assert [len(one.pieces) for one in pieces_of(units, most=1)] == [1, 1, 1]


@pytest.mark.parametrize("name", ["slurm", "hf-jobs"])
def test_scripts_are_sound_bash_without_a_token(name: str, tmp_path: Path) -> None:
    script = scripts()[name]
    file = tmp_path / "launch.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", file], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, file], check=True)
    assert "hf_" not in script.replace("hf_jobs", "")
    assert all(script.count(one.key) == 1 for one in plan())


def test_slurm_is_given_every_unit_after_what_it_needs(tmp_path: Path) -> None:
    """An `sbatch` that runs the jobs of an array at once, and a `hubmerge` that notes its words."""
    _tool(tmp_path, "sbatch", """
        number=$(($(cat count 2> /dev/null || echo 0) + 1)); echo "$number" > count
        echo "$number: $*" >> asked
        cat > "job$number"
        last=0; for word; do case $word in --array=0-*) last=${word#--array=0-} ;; esac; done
        for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task bash "job$number"; done >&2
        echo "$number;cluster"
    """)  # fmt: skip
    _tool(tmp_path, "hubmerge", 'echo "$*" >> made')
    _run(tmp_path, scripts()["slurm"])
    *made, told = (tmp_path / "made").read_text().splitlines()
    keys = [key for line in made for key in line.split("--only ")[1].split(",")]
    assert keys == [one.key for one in plan()]
    assert told == "run recipes/fft --profile paper --work shared folder"
    first, second, last = (tmp_path / "asked").read_text().splitlines()
    assert "--array=0-1 --cpus-per-task=8 --time=180" in first
    assert "--gpus-per-node=1" in first
    assert "--dependency" not in first
    assert "--dependency=afterok:1" in second
    assert "--dependency=afterok:2" in last


def test_jobs_are_waited_for_level_by_level(tmp_path: Path) -> None:
    _tool(tmp_path, "hf", 'echo "$*" >> asked; [ "$2" != run ] || echo "id$RANDOM"')
    environment = {"HF_TOKEN": "not-to-be-written"}
    _run(tmp_path, scripts()["hf-jobs"], environment)
    asked = (tmp_path / "asked").read_text()
    assert "not-to-be-written" not in asked
    words = [" ".join(line.split()[:2]) for line in asked.splitlines()]
    assert words == [
        "buckets create", "jobs run", "jobs run", "jobs wait", "jobs run", "jobs wait",
        "jobs run", "jobs wait", "buckets sync",
    ]  # fmt: skip
    assert asked.count("--secrets HF_TOKEN") == 4
    assert asked.count("--flavor a10g-large --timeout 10800") == 2
    assert asked.count("--flavor cpu-basic --timeout 1800") == 1


def test_no_machine_is_big_enough_for_everything() -> None:
    huge = Batch(0, 8, 16, (("k",),), 1.0)
    with pytest.raises(UsageError, match="8 CPUs and 16 GPUs"):
        hf_jobs([huge], "c", name="n", owner="o", recipes="r", folders=[], version="1")


def _tool(folder: Path, name: str, body: str) -> None:
    tool = folder / "bin" / name
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f"#!/usr/bin/env bash\n{body}\n")
    tool.chmod(0o755)


def _run(folder: Path, script: str, environment: dict[str, str] | None = None) -> None:
    path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(
        ["bash", "-s"], input=script, text=True, cwd=folder, check=True,
        env={**os.environ, **path, **(environment or {})}, capture_output=True,
    )  # fmt: skip
