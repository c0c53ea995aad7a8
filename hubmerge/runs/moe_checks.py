"""What must hold before a mixture is trained, and what should be known of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from hubmerge.errors import UsageError, raise_together
from hubmerge.runs.machine import Machine
from hubmerge.runs.moe_job import MixtureJob
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.specs import MoeSpec
from hubmerge.tasks.multitask import Deck
from hubmerge.training.schedule import check_even, push_steps

_TRIED = 50  # rows that are read beforehand, spread over a split


def check_asked(asked: MoeSpec, count: int, machine: Machine) -> None:
    """Raise UsageError for what cannot be with so many experts, told from the words alone."""
    problems, hints = list[str](), list[str]()
    if asked.top_k > count:
        problems.append(f"top-k is {asked.top_k}, and there are {count} experts.")
        hints.append(f"Ask for {min(2, count)}.")
    if asked.router in ("centroid", "prompts") and not asked.is_signed:
        problems.append(f"A router that starts from {asked.router} is signed: sides matter there.")
        hints.append("Leave out --no-signed.")
    raise_together(UsageError, problems, " ".join(hints))
    push_steps(asked.training.push_every, asked.training.steps)
    check_even(asked.training, machine.world)


def check_start(plan: MoePlan) -> None:
    """A router that starts from data needs a task for each expert, and prompts need words."""
    start = plan.asked.router
    if start not in ("centroid", "prompts"):
        return
    pairs = zip(plan.experts.sources, plan.own, strict=True)
    problems = [
        f"{source.label} was trained for none of the tasks, so its {start} start is not known."
        for source, task in pairs
        if task is None
    ]
    named = [task.name for task in plan.own if task is not None]
    problems += [
        f"{named.count(name)} experts are for {name}, and a {start} start cannot tell them apart."
        for name in sorted({name for name in named if named.count(name) > 1})
    ]
    if start == "prompts":
        problems += [
            f"{task.name} has no class prompts that the experts' layers read."
            for task in plan.tasks
            if task.spec.kind != "text" or task.spec.head != "label"
        ]
    raise_together(UsageError, problems, "Start from arrow, or from centroid.")


def checked(job: MixtureJob) -> tuple[str, ...]:
    """Open model and data once before anything is written; returns what should be known."""
    begun = job.begin()
    training = cast(Deck, begun.training)
    splits = [*training.splits, *(one.examples.split for one in begun.watched)]
    for split in splits:
        for row in range(0, len(split), max(1, len(split) // _TRIED)):
            split.example(row)
    return (*job.plan.experts.notes, *_notes(job.plan.asked))


def _notes(asked: MoeSpec) -> Iterator[str]:
    if asked.top_k == 1 and asked.train_steps and not asked.balance:
        yield (
            "With --top-k 1 the chosen expert's weight is always 1, so the router stays as it "
            "starts (equation 2)."
        )
