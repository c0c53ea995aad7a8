"""hubmerge explain"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from hubmerge.cli.difficulty import texts_table
from hubmerge.cli.options import Columns, Device, SplitName
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import line, percent, table
from hubmerge.refs import parse_ref
from hubmerge.scores import shown_names

if TYPE_CHECKING:
    from hubmerge.flows.explain import Explained
    from hubmerge.forgetting import Forgetting, OfExpert

_MOST_CLASSES = 10
_LEGEND = (
    "By bin, easiest to hardest: its share of the forgotten, and in brackets how much is forgotten "
    "of what the expert has right in it."
)


@verb
def explain(
    session: Session,
    merged: Annotated[str, typer.Argument(help="A merge or a mixture: owner/name or a folder.")],
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, separated by commas; default: its experts'.")
    ] = None,
    difficulty: Annotated[
        list[Path] | None,
        typer.Option(help="Scores of a task's rows, from `hubmerge difficulty`; once a task."),
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Which rows; the paper's are train.")] = "train",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. [the merge, if it is a folder]")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, max=64, help="How many to show of each expert.")
    ] = 8,
    columns: Columns = None,
    device: Device = None,
) -> None:
    """What a merge forgot: examples that its experts have right, and it has wrong.

    They are told by difficulty and by class. `hubmerge card` shows what is written beside a merge.
    """
    ref = parse_ref(merged)
    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else []
    folder = out or ref.path
    with session.connected() as hub:
        from hubmerge.difficulty.difficulty import read_difficulty
        from hubmerge.flows.explain import explain as compare
        from hubmerge.flows.explain import write_explained
        from hubmerge.opening.references import open_ref
        from hubmerge.tasks.custom_task import read_columns
        from hubmerge.tasks.lookup import find_task, names_its_columns

        said = read_columns(columns) if columns else None
        named = [find_task(name, None if names_its_columns(name) else said) for name in names]
        scores = [read_difficulty(path) for path in difficulty or ()]
        with session.progress() as progress:
            found = compare(
                hub, open_ref(hub, ref), named, scores, split, device, progress, examples
            )
        written = write_explained(found, folder) if folder else []
    session.show(_told(found), dataclasses.asdict(found.forgetting))
    if written:
        session.say(f"Wrote {', '.join(path.name for path in written)} to {folder}.")


def _told(found: Explained) -> Group:
    from hubmerge.cards.forgotten import forgotten_words, scored_words

    told = found.forgetting
    parts: list[Any] = [_experts(told), _bins(told)]
    parts += [_classes(one) for one in told.experts if one.bins.total]
    for one, seen in zip(told.experts, found.shown, strict=True):
        if seen and not seen[0].is_image:
            parts.append(texts_table(seen, f"right in {one.expert}, wrong in the merge"))
    said = (_LEGEND, forgotten_words(told), scored_words(told))
    return Group(*parts, *map(line, said))


def _experts(told: Forgetting) -> object:
    names = shown_names(one.task for one in told.experts)
    rows = [
        (
            names[one.task], one.expert, percent(one.before), percent(one.after), one.known,
            one.bins.total, percent(one.bins.total / max(one.known, 1)), one.learnt,
        )
        for one in told.experts
    ]  # fmt: skip
    columns = ("task", "expert", "expert %>", "merged %>", "known>", "forgotten>", "%>", "learnt>")
    return table(columns, rows, title=f"what was forgotten on {told.split}")


def _bins(told: Forgetting) -> object:
    """Of each expert: what a bin has of its forgotten rows, and how much of the bin is gone."""
    names = shown_names(one.task for one in told.experts)
    rows = [
        (place + 1, *(_cell(one, place) for one in told.experts))
        for place in range(len(told.experts[0].bins.counts))
    ]
    hard = ("hardest 30 %", *(percent(one.bins.hardest_share) for one in told.experts))
    columns = ("bin>", *(f"{names[one.task]}>" for one in told.experts))
    return table(columns, [*rows, hard], title="forgotten by bin, %")


def _cell(one: OfExpert, place: int) -> str:
    return f"{percent(one.bins.share[place])} ({percent(one.bins.rate[place])})"


def _classes(one: OfExpert) -> object:
    from hubmerge.cards.forgotten import most_forgotten

    rows = [
        (its.name, its.known, its.forgotten, percent(its.forgotten / its.known), its.taken_for)
        for its in most_forgotten(one)[:_MOST_CLASSES]
    ]
    columns = ("class", "known>", "forgotten>", "%>", "mostly taken for")
    return table(columns, rows, title=f"most forgotten classes of {one.expert}")
