"""hubmerge explain"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from hubmerge.cli.difficulty import texts_table
from hubmerge.cli.options import Columns, Device, SplitName, Tasks, find_tasks, split_names
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import format_percent, make_table, text_line
from hubmerge.refs import parse_ref
from hubmerge.scores import display_names

if TYPE_CHECKING:
    from hubmerge.flows.explain import Explanation
    from hubmerge.forgetting import ExpertForgetting, Forgetting

_MAX_CLASSES = 10
_LEGEND = (
    "By bin, easiest to hardest: the bin's share of the forgotten rows, and in brackets the share "
    "of the rows right in the expert that are forgotten."
)


@command
def explain(
    session: Session,
    merged: Annotated[
        str, typer.Argument(help="A merge or a mixture of experts: owner/name or a folder.")
    ],
    tasks: Tasks = None,
    difficulty: Annotated[
        list[Path] | None,
        typer.Option(help="Scores from `hubmerge difficulty`; one file for each task."),
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Which rows; the paper uses train.")] = "train",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. [the merge, if it is a folder]")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, max=64, help="How many to show of each expert.")
    ] = 8,
    columns: Columns = None,
    device: Device = None,
) -> None:
    """Show the examples that a merge forgot.

    Forgotten examples are right in the expert and wrong in the merge. They are counted by
    difficulty and by class. `hubmerge card` shows the result if it is in the folder of the merge.

    Example: hubmerge explain ./merged --tasks mini-mnist --split test
    """
    ref = parse_ref(merged)
    folder = out or ref.path
    with session.open_hub() as hub, session.progress() as progress:
        from hubmerge.difficulty.difficulty import read_difficulty
        from hubmerge.flows.explain import explain as compare
        from hubmerge.flows.explain import write_explanation
        from hubmerge.opening.references import open_ref

        named = find_tasks(split_names(tasks), columns)
        scores = [read_difficulty(path) for path in difficulty or ()]
        opened = open_ref(hub, ref)
        explanation = compare(hub, opened, named, scores, split, device, progress, examples)
        written = write_explanation(explanation, folder) if folder else []
    session.print_result(_render(explanation), dataclasses.asdict(explanation.forgetting))
    if written:
        session.print_message(f"Wrote {', '.join(path.name for path in written)} to {folder}.")


def _render(explanation: Explanation) -> Group:
    from hubmerge.cards.forgotten import describe_difficulty, describe_forgetting

    forgetting = explanation.forgetting
    parts: list[Any] = [_experts_table(forgetting), _bins_table(forgetting)]
    parts += [_classes_table(expert) for expert in forgetting.experts if expert.bins.total]
    for expert, examples in zip(forgetting.experts, explanation.examples, strict=True):
        if examples and not examples[0].is_image:
            parts.append(texts_table(examples, f"right in {expert.expert}, wrong in the merge"))
    sentences = (_LEGEND, describe_forgetting(forgetting), describe_difficulty(forgetting))
    return Group(*parts, *map(text_line, sentences))


def _experts_table(forgetting: Forgetting) -> object:
    names = display_names(expert.task for expert in forgetting.experts)
    rows = [
        (
            names[expert.task], expert.expert, format_percent(expert.before),
            format_percent(expert.after), expert.known, expert.bins.total,
            format_percent(expert.bins.total / max(expert.known, 1)), expert.learnt,
        )
        for expert in forgetting.experts
    ]  # fmt: skip
    columns = ("task", "expert", "expert %>", "merged %>", "known>", "forgotten>", "%>", "learnt>")
    return make_table(columns, rows, title=f"forgotten on {forgetting.split}")


def _bins_table(forgetting: Forgetting) -> object:
    """For each expert and bin: its share of the forgotten rows, and the share that is forgotten."""
    experts = forgetting.experts
    names = display_names(expert.task for expert in experts)
    rows = [
        (index + 1, *(_bin_cell(expert, index) for expert in experts))
        for index in range(len(experts[0].bins.counts))
    ]
    hard = ("hardest 30 %", *(format_percent(expert.bins.hardest_share) for expert in experts))
    columns = ("bin>", *(f"{names[expert.task]}>" for expert in experts))
    return make_table(columns, [*rows, hard], title="forgotten by bin, %")


def _bin_cell(expert: ExpertForgetting, index: int) -> str:
    return f"{format_percent(expert.bins.share[index])} ({format_percent(expert.bins.rate[index])})"


def _classes_table(expert: ExpertForgetting) -> object:
    from hubmerge.cards.forgotten import most_forgotten_classes

    rows = [
        (
            counts.name, counts.known, counts.forgotten,
            format_percent(counts.forgotten / counts.known), counts.taken_for,
        )
        for counts in most_forgotten_classes(expert)[:_MAX_CLASSES]
    ]  # fmt: skip
    columns = ("class", "known>", "forgotten>", "%>", "most often predicted")
    return make_table(columns, rows, title=f"most forgotten classes of {expert.expert}")
