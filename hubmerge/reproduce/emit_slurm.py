"""The launch of a plan on Slurm: an array of jobs a level, and one that tells the results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import groupby

from hubmerge.reproduce.emit import Batch

MOST = 1000  # Slurm's MaxArraySize, where nobody raised it, less one

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
pieces=(
{pieces}
)
{command} --workers 1 --only "${{pieces[SLURM_ARRAY_TASK_ID]}}"
JOB
)
level{level}="${{level{level}-}}:${{job%%;*}}"
"""
_TELL = """\

# All is there: tell the results.
sbatch --job-name=hubmerge-tell --cpus-per-task=1 --time=60 --kill-on-invalid-dep=yes{after} <<'JOB'
#!/usr/bin/env bash
set -euo pipefail
{command}
JOB
"""


def slurm(batches: Sequence[Batch], command: str, name: str, work: str) -> str:
    """A bash script that submits the batches; `command` is the run, to which keys are added."""
    units = sum(len(piece) for batch in batches for piece in batch.pieces)
    parts = [_HEAD.format(units=units, name=name, work=shlex.quote(work))]
    above: int | None = None
    for level, its in groupby(batches, key=lambda batch: batch.level):
        parts += [_array(batch, command, above) for batch in its]
        above = level
    return "".join([*parts, _TELL.format(command=command, after=_after(above))])


def _array(batch: Batch, command: str, above: int | None) -> str:
    options = [
        f"--job-name=hubmerge-{batch.level}",
        f"--array=0-{len(batch.pieces) - 1}",
        f"--cpus-per-task={batch.cpus}",
        f"--time={batch.limit_s // 60}",
        "--requeue",
        "--kill-on-invalid-dep=yes",
    ]
    if batch.gpus:
        options.append(f"--gpus-per-node={batch.gpus}")
    return _ARRAY.format(
        level=batch.level,
        units=sum(map(len, batch.pieces)),
        jobs=len(batch.pieces),
        options=" ".join(options),
        after=_after(above),
        pieces="\n".join(f"  {','.join(piece)}" for piece in batch.pieces),
        command=command,
    )


def _after(level: int | None) -> str:
    """Only once every job of that level has ended well."""
    return "" if level is None else f' --dependency="afterok${{level{level}}}"'
