"""Launch scripts: valid bash, every unit once, each level after the levels it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from hubmerge.errors import UsageError
from hubmerge.reproduce.emit import Batch, group_by_level, make_batches
from hubmerge.reproduce.emit_jobs import render_hf_jobs
from hubmerge.reproduce.emit_slurm import render_slurm
from hubmerge.reproduce.plan_cost import DurationEstimator
from hubmerge.reproduce.unit import Unit, with_needs
from tests.reproduce.trivial import unit

_ASSUMED = SimpleNamespace(seconds_per_step=1.0, seconds_per_merge=600.0, bytes_per_step=1e6)
_COMMAND = "hubmerge run recipes/fft --profile paper --work 'shared folder'"


def plan() -> list[Unit]:
    """Two levels: nine units of ten minutes on a GPU, and one on CPUs that needs them all."""
    firsts = [unit(f"a{number}", cpus=8, gpus=1) for number in range(9)]
    return with_needs([unit("top", *firsts, cpus=2)])


def make_jobs(units: list[Unit], most: int = 100) -> list[Batch]:
    pace = DurationEstimator({item.key: "vision" for item in units}, {"vision": _ASSUMED})
    return make_batches(units, pace, most)


def scripts() -> dict[str, str]:
    made = make_jobs(plan())
    return {
        "slurm": render_slurm(made, _COMMAND, "fft", "shared folder"),
        "hf-jobs": render_hf_jobs(
            made, "hubmerge run /recipes/fft --profile paper --work /work", name="fft",
            owner="someone", recipes="recipes", folders=["fft-paper"], version="0.1.0",
        ),
    }  # fmt: skip


def test_units_are_grouped_by_the_units_they_wait_for() -> None:
    a, b = unit("a"), unit("b")
    c = unit("c", a)
    top = unit("top", b, c)
    batches = group_by_level(with_needs([top]))
    assert [sorted(item.about for item in level) for level in batches] == [
        ["a", "b"],
        ["c"],
        ["top"],
    ]
    assert group_by_level([top]) == [[top]]  # what it needs is there


def test_jobs_fill_an_hour_and_batches_have_a_maximum() -> None:
    units = plan()
    first, last = make_jobs(units)
    assert (first.level, first.cpus, first.gpus) == (0, 8, 1)
    assert [len(piece) for piece in first.jobs] == [6, 3]
    assert first.limit_s == 3 * 3600
    assert (last.level, last.gpus, last.limit_s) == (1, 0, 1800)
    assert [len(item.jobs) for item in make_jobs(units, most=1)] == [1, 1, 1]


@pytest.mark.parametrize("name", ["slurm", "hf-jobs"])
def test_scripts_are_valid_bash_without_a_token(name: str, tmp_path: Path) -> None:
    script = scripts()[name]
    file = tmp_path / "launch.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", file], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, file], check=True)
    assert "hf_" not in script.replace("hf_jobs", "")
    assert all(script.count(item.key) == 1 for item in plan())


def test_slurm_gets_every_unit_after_the_units_it_needs(tmp_path: Path) -> None:
    """A fake `sbatch` runs the jobs of an array, a fake `hubmerge` records its arguments."""
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
    *made, lines = (tmp_path / "made").read_text().splitlines()
    keys = [key for line in made for key in line.split("--only ")[1].split(",")]
    assert keys == [item.key for item in plan()]
    assert lines == "run recipes/fft --profile paper --work shared folder"
    first, second, last = (tmp_path / "asked").read_text().splitlines()
    assert "--array=0-1 --cpus-per-task=8 --time=180" in first
    assert "--gpus-per-node=1" in first
    assert "--dependency" not in first
    assert "--dependency=afterok:1" in second
    assert "--dependency=afterok:2" in last


def test_hf_jobs_are_waited_for_level_by_level(tmp_path: Path) -> None:
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


def test_units_that_are_too_big_for_every_flavor_are_refused() -> None:
    huge = Batch(0, 8, 16, (("k",),), 1.0)
    with pytest.raises(UsageError, match="8 CPUs and 16 GPUs"):
        render_hf_jobs([huge], "c", name="n", owner="o", recipes="r", folders=[], version="1")


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
