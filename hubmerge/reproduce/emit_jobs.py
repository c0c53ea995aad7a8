"""A script that runs a plan on Hugging Face Jobs, level by level."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import groupby

from hubmerge.errors import UsageError
from hubmerge.reproduce.emit import Batch

MAX_JOBS = 10_000
# Maximum CPUs and GPUs of each flavor, as `hf jobs hardware` lists them; the first that fits is
# used.
_FLAVORS = (
    (2, 0, "cpu-basic"),
    (8, 0, "cpu-upgrade"),
    (32, 0, "cpu-performance"),
    (12, 1, "a10g-large"),
    (24, 2, "a10g-largex2"),
    (48, 4, "a10g-largex4"),
    (96, 8, "a100x8"),
)
_HEAD = """\
#!/usr/bin/env bash
# Launches {units} units of {name} on Hugging Face Jobs, level by level: bash this file in the
# folder of the recipes, after `hf auth login`. Jobs cost money: `hf jobs hardware` has the prices.
# Jobs see your token as a secret that is read from HF_TOKEN here, and share a private bucket.
set -euo pipefail
: "${{HF_TOKEN:?is read from here; its value is not written into any file}}"
bucket=${{BUCKET:-{owner}/hubmerge-work}}
image=${{IMAGE:-python:3.12}}
hubmerge=${{HUBMERGE:-hubmerge=={version}}} # what pip installs in a job
hf buckets create "$bucket" --private --exist-ok

launch() { # flavor, seconds, the command
  local flavor=$1 seconds=$2
  shift 2
  # shellcheck disable=SC2016 # the job's shell expands it
  hf jobs run --detach --quiet --flavor "$flavor" --timeout "$seconds" --namespace {owner} \\
    --secrets HF_TOKEN -v "hf://buckets/$bucket:/work" -v {recipes}:/recipes \\
    "$image" sh -c 'pip install --quiet "$0" && exec "$@"' "$hubmerge" "$@"
}
"""
_LEVEL = """\

# Level {level}: {units} units in {jobs} jobs.
jobs=()
{launches}
hf jobs wait --namespace {owner} "${{jobs[@]}}"
"""
_LAUNCH = 'jobs+=("$(launch {flavor} {seconds} {command} --workers 1 --only {keys})")'
_RESULTS = """\

# All units are done: write the results and fetch them.
jobs=("$(launch cpu-basic 3600 {command})")
hf jobs wait --namespace {owner} "${{jobs[@]}}"
"""
_FETCH = 'hf buckets sync "hf://buckets/$bucket/"{folder} {folder}\n'


def render_hf_jobs(
    batches: Sequence[Batch],
    command: str,
    *,
    name: str,
    owner: str,
    recipes: str,
    folders: Sequence[str],
    version: str,
) -> str:
    """A bash script that launches the batches and waits for each level before the next.

    `command` is the complete run as jobs see it, with recipes in /recipes and the shared folder
    /work. `recipes` is the local folder of the recipes, `folders` are the folders of results.
    Raises UsageError for units that no flavor is big enough for.
    """
    owner = shlex.quote(owner)
    head = _HEAD.replace("launch() {", "launch() {{").replace("\n}\n", "\n}}\n")
    units = sum(len(job) for batch in batches for job in batch.jobs)
    parts = [
        head.format(
            units=units, name=name, owner=owner, version=version, recipes=shlex.quote(recipes)
        )
    ]
    for level, of_level in groupby(batches, key=lambda batch: batch.level):
        parts.append(_render_level(level, list(of_level), command, owner))
    parts.append(_RESULTS.format(command=command, owner=owner))
    parts += [_FETCH.format(folder=shlex.quote(folder)) for folder in folders]
    return "".join(parts)


def _render_level(level: int, batches: Sequence[Batch], command: str, owner: str) -> str:
    jobs = [(batch, job) for batch in batches for job in batch.jobs]
    launches = "\n".join(
        _LAUNCH.format(
            flavor=_pick_flavor(batch), seconds=batch.limit_s, command=command, keys=",".join(job)
        )
        for batch, job in jobs
    )
    units = sum(len(job) for _, job in jobs)
    return _LEVEL.format(level=level, units=units, jobs=len(jobs), launches=launches, owner=owner)


def _pick_flavor(batch: Batch) -> str:
    for cpus, gpus, name in _FLAVORS:
        if batch.cpus <= cpus and batch.gpus <= gpus and (batch.gpus or not gpus):
            return name
    raise UsageError(
        f"No flavor of Hugging Face Jobs has {batch.cpus} CPUs and {batch.gpus} GPUs.",
        "Lower cpus or gpus in the profile.",
    )
