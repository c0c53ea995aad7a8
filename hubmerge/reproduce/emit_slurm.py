"""A script that runs a plan on Slurm: an array of jobs per level, and one that writes results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import groupby

from hubmerge.reproduce.emit import Batch

MAX_JOBS = 1000  # Slurm's default MaxArraySize, less one

_HEAD = """\
#!/usr/bin/env bash
# Launches {units} units of {name} on Slurm: bash this file in the folder of the recipes.
# The folder {work} must be shared by all nodes, on a file system with locks (NFS 4, Lustre).
# Each node needs hubmerge, and a login at the Hub (hf auth login, or HF_TOKEN where jobs see it).
# Account, partition and the like: SBATCH_ACCOUNT, SBATCH_PARTITION ... in the environment.
set -euo pipefail
"""
_ARRAY = """\

# Level {level}: {units} units in {jobs} jobs.
job=$(sbatch --parsable {options}{after} <<'JOB'
#!/usr/bin/env bash
set -euo pipefail
keys=(
{keys}
)
{command} --workers 1 --only "${{keys[SLURM_ARRAY_TASK_ID]}}"
JOB
)
level{level}="${{level{level}-}}:${{job%%;*}}"
"""
_RESULTS = """\

# All units are done: write the results.
sbatch --job-name=hubmerge-results --cpus-per-task=1 --time=60 \\
  --kill-on-invalid-dep=yes{after} <<'JOB'
#!/usr/bin/env bash
set -euo pipefail
{command}
JOB
"""


def render_slurm(batches: Sequence[Batch], command: str, name: str, work: str) -> str:
    """A bash script that submits the batches; `command` is the run, to which keys are added."""
    units = sum(len(job) for batch in batches for job in batch.jobs)
    parts = [_HEAD.format(units=units, name=name, work=shlex.quote(work))]
    previous_level: int | None = None
    for level, of_level in groupby(batches, key=lambda batch: batch.level):
        parts += [_render_array(batch, command, previous_level) for batch in of_level]
        previous_level = level
    after = _dependency_option(previous_level)
    return "".join([*parts, _RESULTS.format(command=command, after=after)])


def _render_array(batch: Batch, command: str, previous_level: int | None) -> str:
    options = [
        f"--job-name=hubmerge-{batch.level}",
        f"--array=0-{len(batch.jobs) - 1}",
        f"--cpus-per-task={batch.cpus}",
        f"--time={batch.limit_s // 60}",
        "--requeue",
        "--kill-on-invalid-dep=yes",
    ]
    if batch.gpus:
        options.append(f"--gpus-per-node={batch.gpus}")
    return _ARRAY.format(
        level=batch.level,
        units=sum(map(len, batch.jobs)),
        jobs=len(batch.jobs),
        options=" ".join(options),
        after=_dependency_option(previous_level),
        keys="\n".join(f"  {','.join(job)}" for job in batch.jobs),
        command=command,
    )


def _dependency_option(level: int | None) -> str:
    """The option that starts a job once every job of that level has succeeded."""
    return "" if level is None else f' --dependency="afterok${{level{level}}}"'
