"""Test accuracy of experts and of the base."""

from __future__ import annotations

from hubmerge.flows.evaluate import Bench
from hubmerge.opening.references import open_pinned, pin
from hubmerge.refs import ModelRef
from hubmerge.reproduce.unit import Result
from hubmerge.reproduce.units.work import Work, last_of

TEST = "test"


def score_expert(work: Work) -> Result:
    """Rows: each step's accuracy on the expert's own task; validation as it was while training."""
    run, task = work.inputs["expert"], work.task(work.params["task"])
    bench = Bench(work.hub, TEST, work.device)
    rows = []
    for asked in work.params["steps"]:
        step = last_of(run, asked)
        score = bench.measure(work.open(run, step), task)
        rows.append({
            "step": "early stop" if asked == -1 else step,
            "ended": step,
            "value": score.value,
            "stderr": score.stderr,
            "validation": run["validation"][str(step)],
        })  # fmt: skip
    return {"rows": rows}


def score_base(work: Work) -> Result:
    """A row for each task: the base's own accuracy, before any training."""
    base = work.inputs["base"]
    opened = open_pinned(work.hub, pin(work.hub, ModelRef(base["repo"], revision=base["sha"])))
    bench = Bench(work.hub, TEST, work.device)
    return {
        "rows": [
            {"task": name, "step": 0, "value": bench.measure(opened, work.task(text)).value}
            for name, text in work.params["tasks"].items()
        ]
    }
