"""Bases and experts as revisions on the Hub, which other units start from."""

from __future__ import annotations

import json
from pathlib import Path

from hubmerge.durable import write_atomic
from hubmerge.errors import IntegrityError
from hubmerge.flows import train as flow
from hubmerge.hub.publish import ensure_repo
from hubmerge.hub.resolve import resolve
from hubmerge.progress import no_progress
from hubmerge.refs import parse_ref
from hubmerge.reproduce.source_units import FOLDER_PREFIX
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.wheels import WHEEL_PREFIX, extract_model, parse_wheel
from hubmerge.reproduce.units.work import UnitJob
from hubmerge.runs.expert_job import prepare_expert_run
from hubmerge.specs import TrainSpec, validate_spec

_ATTEMPTS = 4


def make_base(work: UnitJob) -> Result:
    """The base as a commit on the Hub; a base from a folder or a wheel is uploaded."""
    base = str(work.params["base"])
    if base.startswith(FOLDER_PREFIX):
        folder = base.removeprefix(FOLDER_PREFIX)
        return _upload_base(
            work, folder.strip("/").replace("/", "-"), work.context.recipes / folder
        )
    if base.startswith(WHEEL_PREFIX):
        with work.scratch() as scratch:
            return _upload_base(
                work, parse_wheel(base)[0].replace("==", "-"), extract_model(base, scratch)
            )
    ref = parse_ref(base)
    return {"repo": ref.repo_id, "sha": resolve(work.hub, ref).sha}


def _upload_base(work: UnitJob, name: str, folder: Path) -> Result:
    repo = f"{work.context.owner}/{name}"
    ensure_repo(work.hub, repo, True)  # private, as the licence may forbid to publish the weights
    commit = work.hub.api.upload_folder(repo_id=repo, folder_path=folder)
    return {"repo": repo, "sha": commit.oid}


def train(work: UnitJob) -> Result:
    """Train one expert and publish its steps; returns step -> commit and the validation curve.

    An interrupted run has pushed some of its steps. If training it again gives other bits, as on
    another machine or a GPU, the new run goes to a repository of its own.
    """
    name = "-".join(filter(None, (work.unit.key, work.context.code[:8])))
    for attempt in range(1, _ATTEMPTS):
        try:
            return _train_into(work, name if attempt == 1 else f"{name}-{attempt}")
        except IntegrityError:
            continue
    return _train_into(work, f"{name}-{_ATTEMPTS}")


def _train_into(work: UnitJob, name: str) -> Result:
    base, params = work.inputs["base"], work.params
    task = work.task(params["task"])
    to = f"{work.context.owner}/{task.name}-{name}"
    with work.scratch() as folder:
        options = {
            **params["train"],
            "base": f"{base['repo']}@{base['sha']}",
            "task": params["task"],
        }
        if "drop" in params:
            # The path is an option of the run, so it must be the same when the unit runs again.
            file = work.context.folder / f"difficulty-{work.unit.needs['difficulty'].key}.json"
            write_atomic(file, json.dumps(work.inputs["difficulty"]["file"]).encode())
            options |= {"difficulty": str(file), "drop_hardest": params["drop"]}
        spec = validate_spec(TrainSpec, {**options, "to": to}, work.unit.about)
        run = prepare_expert_run(work.hub, spec, task, folder, folder / "run", work.machine)
        made = flow.train(work.hub, run, no_progress)
    assert made is not None
    return {
        "repo": to,
        "commits": {str(step): sha for step, sha in made.commits.items()},
        "curve": [[p.step, p.loss, p.accuracy] for p in made.curve],
        "validation": {str(step): point.accuracy for step, point in made.points.items()},
    }
