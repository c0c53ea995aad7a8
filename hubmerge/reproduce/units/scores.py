"""Test accuracy of experts and of the base."""

from __future__ import annotations

from hubmerge.flows.evaluate import ModelEvaluator
from hubmerge.opening.references import open_pinned, pin
from hubmerge.refs import ModelRef
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.work import UnitJob, step_number

TEST = "test"


def score_expert(work: UnitJob) -> Result:
    """A row for each step: test accuracy on the expert's task, validation from its training."""
    run, task = work.inputs["expert"], work.task(work.params["task"])
    evaluator = ModelEvaluator(work.hub, TEST, work.device)
    rows = []
    for requested in work.params["steps"]:
        step = step_number(run, requested)
        score = evaluator.measure(work.open_step(run, step), task)
        rows.append({
            "step": "early stop" if requested == -1 else step,
            "ended": step,
            "value": score.value,
            "stderr": score.stderr,
            "validation": run["validation"][str(step)],
        })  # fmt: skip
    return {"rows": rows}


def score_base(work: UnitJob) -> Result:
    """A row for each task: the accuracy of the base before any training."""
    base = work.inputs["base"]
    opened = open_pinned(work.hub, pin(work.hub, ModelRef(base["repo"], revision=base["sha"])))
    evaluator = ModelEvaluator(work.hub, TEST, work.device)
    return {
        "rows": [
            {"task": name, "step": 0, "value": evaluator.measure(opened, work.task(text)).value}
            for name, text in work.params["tasks"].items()
        ]
    }
