"""Checks before a mixture of experts is trained, and notes on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from hubmerge.errors import UsageError, raise_together
from hubmerge.runs.job import ReadyJob
from hubmerge.runs.machine import Machine
from hubmerge.runs.moe_job import MoeJob
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.specs import MoeSpec
from hubmerge.tasks.multitask import MultiTaskData
from hubmerge.training.schedule import check_even_batches, push_steps

_SAMPLED_ROWS = 50  # rows that are read before training, spread over a split


def check_moe_spec(moe_spec: MoeSpec, count: int, machine: Machine) -> None:
    """Raise UsageError for options that are invalid with `count` experts."""
    problems, hints = list[str](), list[str]()
    if moe_spec.top_k > count:
        problems.append(f"top-k is {moe_spec.top_k}, and there are {count} experts.")
        hints.append(f"Write --top-k {min(2, count)}.")
    if moe_spec.router in ("centroid", "prompts") and not moe_spec.is_signed:
        problems.append(f"{moe_spec.router} starts need signed scores.")
        hints.append("Leave out --no-signed.")
    raise_together(UsageError, problems, " ".join(hints))
    push_steps(moe_spec.train_spec.push_every, moe_spec.train_spec.steps)
    check_even_batches(moe_spec.train_spec, machine.world_size)


def check_router_start(plan: MoePlan) -> None:
    """Raise UsageError if a router that starts from data has no task or prompts for an expert."""
    start = plan.moe_spec.router
    if start not in ("centroid", "prompts"):
        return
    pairs = zip(plan.experts.sources, plan.expert_tasks, strict=True)
    problems = [
        f"{source.label} was not trained for any of the tasks, which a {start} start needs."
        for source, task in pairs
        if task is None
    ]
    names = [task.name for task in plan.expert_tasks if task is not None]
    problems += [
        f"{names.count(name)} experts are for {name}, and would get the same {start} start."
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if start == "prompts":
        problems += [
            f"{task.name} has no class prompts that pass the layers of the experts."
            for task in plan.tasks
            if task.spec.kind != "text" or task.spec.head != "label"
        ]
    raise_together(UsageError, problems, "Write --router arrow, or --router centroid.")


def check_data(job: MoeJob) -> tuple[ReadyJob, tuple[str, ...]]:
    """Open model and data before anything is written; returns them with notes for the user."""
    ready = job.build()
    training = cast(MultiTaskData, ready.training)
    splits = [*training.splits, *(task.examples.split for task in ready.validation_tasks)]
    for split in splits:
        for row in range(0, len(split), max(1, len(split) // _SAMPLED_ROWS)):
            split.example(row)
    return ready, (*job.plan.experts.notes, *_notes(job.plan.moe_spec))


def _notes(moe_spec: MoeSpec) -> Iterator[str]:
    if moe_spec.top_k == 1 and moe_spec.train_steps and not moe_spec.balance:
        yield (
            "With --top-k 1 the weight of the chosen expert is always 1, so the router is not "
            "trained (equation 2)."
        )
