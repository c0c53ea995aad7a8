"""A card's title, and the sentences under it: the score with its gains, and whose choice it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hubmerge.cards import selection
from hubmerge.cards.baselines import summary_rows
from hubmerge.cards.card_input import CardInput
from hubmerge.cards.markdown import plain
from hubmerge.cards.metadata import metric_name
from hubmerge.cards.number_format import percent
from hubmerge.cards.training_summary import adapter_name, annealed, stopped_early
from hubmerge.manifest import Manifest
from hubmerge.scores import Score, shown_names, upcycling


def title(manifest: Manifest) -> str:
    """What it is, of which tasks, as text that is not escaped yet."""
    if manifest.is_expert:
        return f"Expert for {manifest.task_name or 'one task'} at step {manifest.step}"
    names = shown_names(expert.task for expert in manifest.experts if expert.task)
    tasks = ", ".join(names.get(e.task or "") or e.name for e in manifest.experts)
    made = "Mixture" if manifest.is_moe else f"{manifest.method} merge"
    return f"{made} of {len(manifest.experts)} experts: {tasks}"


def headline(told: CardInput) -> str:
    """The upcycling score of a merge or a mixture with its gains, as Markdown."""
    score = upcycling(told.own)
    if told.mixed:
        said = _mixed_headline(told.own)
    elif score is None:
        said = "Not evaluated yet."
    else:
        ours, *others = summary_rows(told)
        gains = "; ".join(f"{row['gain']} {row['versus']}" for row in others)
        said = (
            f"**Upcycling score {percent(score.value)} %** (95 % interval {ours['interval']}), "
            f"raw mean {told.split} accuracy over {score.tasks} tasks"
        )
        said += ", the task unknown to the router" if told.manifest.is_moe else ""
        said += f": {gains}." if gains else "."
    return "\n\n".join([said, *_choice(told)])


def expert_headline(manifest: Manifest) -> str:
    """Which step of which run an expert is, as Markdown."""
    adapter = adapter_name(manifest)
    an_adapter = f"an adapter ({plain(adapter)}) on" if adapter else "an adapter on"
    made = an_adapter if manifest.layout == "peft" else "fine-tuned from"
    mode = f": {said}" if (said := annealed(manifest)) else ""
    stop = f"The run was stopped early at step {manifest.step}. " if stopped_early(manifest) else ""
    return (
        f"Step {manifest.step} of {manifest.last_step}, {made} {plain(manifest.base.label)}{mode}. "
        f"{stop}Every pushed step is a tag of this repository: an early one often merges better "
        "than the last."
    )


def _choice(told: CardInput) -> Iterator[str]:
    """Whose choice it is, by the lock beside it."""
    if told.lock is None:
        return
    if told.pick is None:
        yield "It is none of the picks of the lock beside it, which are told of below."
    elif told.pick.policy != told.lock.chosen:
        policy, chosen = plain(told.pick.policy), plain(told.lock.chosen)
        yield f"It is what the policy {policy} picked; the lock's choice is that of {chosen}."
    else:
        yield selection.verdict(told.lock)


def _mixed_headline(scores: Sequence[Score]) -> str:
    """Says which task is measured how: the table has accuracies of both kinds in one column."""
    names = shown_names(score.task for score in scores)
    how = ", ".join(f"{names[score.task]} by {metric_name(score).lower()}" for score in scores)
    return f"The tasks are measured differently, {plain(how)}, so there is no mean over them."
