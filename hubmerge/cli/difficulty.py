"""hubmerge difficulty"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group

from hubmerge.cli.options import Columns, Device, SplitName
from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import percent, table
from hubmerge.errors import UsageError
from hubmerge.refs import ModelRef, parse_ref

if TYPE_CHECKING:
    from hubmerge.difficulty.difficulty import Asked, Difficulty
    from hubmerge.flows.examples import Shown
    from hubmerge.hub.client import Hub
    from hubmerge.opening.opened_model import Opened

_LONGEST_TEXT = 200


@verb
def difficulty(
    session: Session,
    models: Annotated[
        list[str], typer.Argument(help="Models that give the scores, such as seeds of one step.")
    ],
    task: Annotated[str, typer.Option(help="The task whose rows are scored.")],
    split: Annotated[SplitName, typer.Option(help="Which of its rows.")] = "train",
    out: Annotated[Path | None, typer.Option(help="File to write the scores to: .json.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture of the hardest examples to write: .png.")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, max=400, help="How many of the hardest to show.")
    ] = 40,
    bins: Annotated[int, typer.Option(min=1, max=1000, help="Bins of equal size.")] = 10,
    every_step: Annotated[
        bool,
        typer.Option("--every-step", help="Also the share of the loss at every step of the repos."),
    ] = False,
    columns: Columns = None,
    device: Device = None,
) -> None:
    """How hard each example is: EL2N, the mean over models, and which bins have the loss.

    The paper takes 10 seeds at step 32, and ten bins of the train split.
    """
    refs = [parse_ref(text) for text in models]
    _check_files(out, picture)
    if every_step and any(ref.repo_id is None for ref in refs):
        raise UsageError("--every-step goes with repositories.", "Leave the folders out.")
    with session.connected() as hub:
        from hubmerge.difficulty.difficulty import write_difficulty
        from hubmerge.flows.difficulty import draw_hardest, hardest_examples, measure
        from hubmerge.opening.references import open_ref, pin_task
        from hubmerge.tasks.custom_task import read_columns
        from hubmerge.tasks.lookup import find_task

        asked = pin_task(hub, find_task(task, read_columns(columns) if columns else None))
        if picture and asked.spec.kind != "image":
            raise UsageError(
                f"--picture shows images, and task {asked.name} has none.",
                "Leave it out: the hardest texts are listed.",
            )
        opened = [open_ref(hub, ref) for ref in refs]
        course = _every_step(hub, refs) if every_step else []
        with session.progress() as progress:
            found = measure(hub, opened, asked, split, device, progress, bins, course)
        seen = hardest_examples(asked, found, examples)
    if out:
        write_difficulty(found, out)
    if picture and seen:
        draw_hardest(found, seen, picture)
    session.show(_told(found, seen), _data(found, seen))
    for path in filter(None, (out, picture)):
        session.say(f"Wrote {path}.")


def _check_files(out: Path | None, picture: Path | None) -> None:
    """Before anything is measured."""
    if out and out.suffix != ".json":
        raise UsageError(f"--out {out} is no JSON file.", "Name it with .json.")
    if picture and picture.suffix != ".png":
        raise UsageError(f"--picture {picture} is no picture.", "Name it with .png.")
    for path in filter(None, (out, picture)):
        if not path.absolute().parent.is_dir():
            raise UsageError(f"There is no folder {path.parent} to write {path.name} to.")


def _every_step(hub: Hub, refs: Sequence[ModelRef]) -> list[Opened]:
    from hubmerge.opening.references import every_step, open_pinned, pin_revision

    repos = dict.fromkeys(str(ref.repo_id) for ref in refs)
    return [open_pinned(hub, pin_revision(hub, s)) for repo in repos for s in every_step(hub, repo)]


def _told(found: Difficulty, seen: Sequence[Shown]) -> Group:
    name = found.task.partition("@")[0]
    title = f"{found.count} rows of {found.split} of {name}, easiest to hardest"
    rows = [
        (
            place, one.size, f"{one.el2n:.3f}", percent(one.accuracy), f"{one.margin:.2f}",
            percent(one.loss_share),
        )
        for place, one in enumerate(found.by_bin, start=1)
    ]  # fmt: skip
    columns = ("bin>", "rows>", "EL2N>", "accuracy %>", "margin>", "share of loss %>")
    parts = [table(columns, rows, title=title), _course((*found.models, *found.course))]
    if seen and not seen[0].is_image:
        parts.append(texts_table(seen, "hardest texts"))
    return Group(*parts)


def _course(models: Sequence[Asked]) -> Any:
    """The share of the loss that the hardest bins have, model by model."""
    shown = min(3, len(models[0].loss_share))
    last = len(models[0].loss_share)
    heads = [f"bin {place}>" for place in range(last - shown + 1, last + 1)]
    rows = [
        (one.label, percent(one.accuracy), *map(percent, one.loss_share[last - shown :]))
        for one in {(one.label, one.digest): one for one in models}.values()
    ]
    return table(("model", "accuracy %>", *heads), rows, title="share of the loss, %")


def texts_table(seen: Sequence[Shown], title: str) -> Any:
    """Texts with their class and what the model says."""
    rows = [(one.row, one.what[:_LONGEST_TEXT], one.label, one.predicted) for one in seen]
    return table(("row>", "text", "class", "said to be"), rows, title=title)


def _data(found: Difficulty, seen: Sequence[Shown]) -> dict[str, Any]:
    """All but the rows, of which --out has every one."""
    asked = [dataclasses.asdict(one) for one in found.models]
    return {
        "task": found.task,
        "split": found.split,
        "rows": found.count,
        "digest": found.digest,
        "models": asked,
        "course": [dataclasses.asdict(one) for one in found.course],
        "bins": [dataclasses.asdict(one) for one in found.by_bin],
        "hardest": [row_of(one) for one in seen],
    }


def row_of(one: Shown) -> dict[str, Any]:
    """An example as JSON has it: a text is told, an image is known by its row."""
    text = {} if one.is_image else {"text": one.what}
    return {
        "row": one.row, "class": one.label, "predicted": one.predicted, "el2n": one.score, **text,
    }  # fmt: skip
