"""Mixtures of experts that start from one step of every expert."""

from __future__ import annotations

import math

from hubmerge.flows import moerge as flow
from hubmerge.flows.evaluate import ModelEvaluator
from hubmerge.opening.references import open_pinned, pin
from hubmerge.progress import no_progress
from hubmerge.refs import ModelRef
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.scores import TEST
from hubmerge.reproduce.units.work import UnitJob, step_number, step_ref
from hubmerge.specs import MoeSpec, validate_spec


def train_moe(work: UnitJob) -> Result:
    """Build and train a mixture of experts and evaluate it on every task; routing is not stored."""
    step, runs = work.params["step"], work.experts
    spec = validate_spec(MoeSpec, work.params["moe"], work.unit.about)
    request = flow.MoeRequest(tuple(step_ref(run, step) for run in runs.values()), spec, work.tasks)
    with work.scratch() as folder:
        run = flow.prepare_moe(work.hub, request, folder, work.machine)
        made = flow.moerge(work.hub, run, request, no_progress)
        assert made is not None
        evaluator = ModelEvaluator(work.hub, TEST, work.device)
        opened = open_pinned(work.hub, pin(work.hub, ModelRef(path=made.folder)))
        scores = {name: evaluator.measure(opened, work.task_of(name)) for name in runs}
    return {
        "rows": [{
            "validation": made.curve[-1].accuracy,
            "value": sum(score.value for score in scores.values()) / len(scores),
            "stderr": math.hypot(*(score.stderr for score in scores.values())) / len(scores),
            "tasks": {name: score.value for name, score in scores.items()},
            "ended": [step_number(run, step) for run in runs.values()],
        }],
    }  # fmt: skip
