"""A card's title and the sentences below it: the score with its gains, and who chose the steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hubmerge.cards import selection
from hubmerge.cards.baselines import summary_rows
from hubmerge.cards.card_input import CardInput
from hubmerge.cards.markdown import escape_markdown
from hubmerge.cards.metadata import metric_name, metric_of
from hubmerge.cards.number_format import percent
from hubmerge.cards.training_summary import adapter_name, describe_annealing, stopped_early
from hubmerge.manifest import Manifest
from hubmerge.scores import Score, display_names, upcycling


def title(manifest: Manifest) -> str:
    """The kind of model and its tasks, not escaped."""
    if whole := manifest.extracted_from:
        return f"LoRA of {whole.name}{'' if whole.step is None else f' at step {whole.step}'}"
    if manifest.is_expert:
        return f"Expert for {manifest.task_name or 'one task'} at step {manifest.step}"
    names = display_names(expert.task for expert in manifest.experts if expert.task)
    tasks = ", ".join(names.get(e.task or "") or e.name for e in manifest.experts)
    kind = "Mixture" if manifest.is_moe else f"{manifest.method} merge"
    return f"{kind} of {len(manifest.experts)} experts: {tasks}"


def headline(card_input: CardInput) -> str:
    """The upcycling score of a merge or a mixture with its gains, as Markdown."""
    score = upcycling(card_input.own_scores)
    if card_input.has_mixed_metrics:
        text = _mixed_metrics_headline(card_input.own_scores)
    elif score is None:
        text = "Not evaluated yet."
    else:
        ours, *others = summary_rows(card_input)
        gains = "; ".join(f"{row['gain']} {row['gain_phrase']}" for row in others)
        text = (
            f"**Upcycling score {percent(score.value)} %** (95 % interval {ours['interval']}), "
            f"raw mean {card_input.split} {metric_of(card_input)} over {score.tasks} tasks"
        )
        text += ", the task unknown to the router" if card_input.manifest.is_moe else ""
        text += f": {gains}." if gains else "."
    return "\n\n".join([text, *_describe_choice(card_input)])


def expert_headline(manifest: Manifest) -> str:
    """The step of an expert, the number of steps of its run, and its base, as Markdown."""
    base = escape_markdown(manifest.base.label)
    if whole := manifest.extracted_from:
        return (
            f"The change from {base} to {escape_markdown(whole.label)}, as an adapter on the "
            "former: the closest one of its rank, extracted without training."
        )
    adapter = adapter_name(manifest)
    an_adapter = f"an adapter ({escape_markdown(adapter)}) on" if adapter else "an adapter on"
    kind = an_adapter if manifest.layout == "peft" else "fine-tuned from"
    annealing = f": {text}" if (text := describe_annealing(manifest)) else ""
    stop = f"The run was stopped early at step {manifest.step}. " if stopped_early(manifest) else ""
    return (
        f"Step {manifest.step} of {manifest.last_step}, {kind} {base}{annealing}. "
        f"{stop}Every pushed step is a tag of this repository: an early one often merges better "
        "than the last."
    )


def _describe_choice(card_input: CardInput) -> Iterator[str]:
    """The policy that chose this model, if it has a lock."""
    if card_input.lock is None:
        return
    if card_input.pick is None:
        yield "It is not one of the picks of its lock, which are described below."
    elif card_input.pick.policy != card_input.lock.chosen:
        policy, chosen = (
            escape_markdown(card_input.pick.policy),
            escape_markdown(card_input.lock.chosen),
        )
        yield f"It was picked by the policy {policy}; the lock's choice is the pick of {chosen}."
    else:
        yield selection.describe_outcome(card_input.lock)


def _mixed_metrics_headline(scores: Sequence[Score]) -> str:
    """The metric of each task, because the table has different metrics in one column."""
    names = display_names(score.task for score in scores)
    metrics = escape_markdown(
        ", ".join(f"{names[score.task]} by {metric_name(score).lower()}" for score in scores)
    )
    return f"The tasks are measured differently, {metrics}, so there is no mean over them."
