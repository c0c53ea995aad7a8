"""hubmerge difficulty"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from hubmerge.cli.options import Columns, Device, SplitName
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import format_percent, make_table
from hubmerge.errors import UsageError
from hubmerge.refs import ModelRef, parse_ref

if TYPE_CHECKING:
    from hubmerge.difficulty.difficulty import Difficulty, ScoredModel
    from hubmerge.flows.examples import ExampleRow
    from hubmerge.hub.client import Hub
    from hubmerge.opening.opened_model import OpenedModel
    from hubmerge.tasks.task import Task

_MAX_TEXT = 200


@dataclasses.dataclass(frozen=True)
class DifficultyFiles:
    """Files that the scores are written to."""

    out: Annotated[Path | None, typer.Option(help="File to write the scores to: .json.")] = None
    picture: Annotated[
        Path | None, typer.Option(help="Picture of the hardest examples to write: .png.")
    ] = None

    def check(self) -> None:
        """Raises UsageError for other file types, and for folders that do not exist."""
        if self.out and self.out.suffix != ".json":
            raise UsageError(f"--out {self.out} is not a JSON file.", "Name it with .json.")
        if self.picture and self.picture.suffix != ".png":
            raise UsageError(f"--picture {self.picture} is not a picture.", "Name it with .png.")
        for path in self.paths:
            if not path.absolute().parent.is_dir():
                raise UsageError(f"There is no folder {path.parent} to write {path.name} to.")

    @property
    def paths(self) -> list[Path]:
        """The files that were asked for."""
        return [path for path in (self.out, self.picture) if path]


@command
def difficulty(
    session: Session,
    models: Annotated[
        list[str], typer.Argument(help="Models that give the scores, such as seeds of one step.")
    ],
    task: Annotated[str, typer.Option(help="The task whose rows are scored.")],
    split: Annotated[SplitName, typer.Option(help="Which of its rows.")] = "train",
    *,
    files: DifficultyFiles,
    examples: Annotated[
        int, typer.Option(min=0, max=400, help="How many of the hardest to show.")
    ] = 40,
    bins: Annotated[int, typer.Option(min=1, max=1000, help="Bins of equal size.")] = 10,
    every_step: Annotated[
        bool, typer.Option("--every-step", help="Show the share of the loss at every step too.")
    ] = False,
    columns: Columns = None,
    device: Device = None,
) -> None:
    """Score how hard each example is for one or more models.

    The score is EL2N, the mean over the models. The table shows which bins of examples, easiest to
    hardest, have the loss. The paper uses 10 seeds at step 32, and ten bins of the train split.

    Example: hubmerge difficulty me/mnist@step32 --task mini-mnist --out hard.json
    """
    refs = [parse_ref(text) for text in models]
    files.check()
    if every_step and any(ref.repo_id is None for ref in refs):
        raise UsageError("--every-step needs repositories.", "Leave the folders out.")
    with session.open_hub() as hub, session.progress() as progress:
        from hubmerge.flows.difficulty import hardest_examples, measure_difficulty
        from hubmerge.opening.references import open_ref

        pinned_task = _pin_task(hub, task, columns, with_picture=files.picture is not None)
        opened = [open_ref(hub, ref) for ref in refs]
        steps = _open_every_step(hub, refs) if every_step else []
        scores = measure_difficulty(hub, opened, pinned_task, split, device, progress, bins, steps)
        hardest = hardest_examples(pinned_task, scores, examples)
    _write_files(files, scores, hardest)
    session.print_result(_render(scores, hardest), _to_json(scores, hardest))
    for path in files.paths:
        session.print_message(f"Wrote {path}.")


def _pin_task(hub: Hub, name: str, columns: str | None, with_picture: bool) -> Task:
    """The task with its data at a fixed commit; raises UsageError if it cannot be drawn."""
    from hubmerge.opening.references import pin_task
    from hubmerge.tasks.custom_task import parse_columns
    from hubmerge.tasks.lookup import find_task

    task = pin_task(hub, find_task(name, parse_columns(columns) if columns else None))
    if with_picture and task.spec.kind != "image":
        raise UsageError(
            f"--picture needs images, and task {task.name} has none.",
            "Leave it out: the hardest texts are listed.",
        )
    return task


def _open_every_step(hub: Hub, refs: Sequence[ModelRef]) -> list[OpenedModel]:
    from hubmerge.opening.references import open_pinned, pin_revision, require_steps

    repos = dict.fromkeys(str(ref.repo_id) for ref in refs)
    return [
        open_pinned(hub, pin_revision(hub, s)) for repo in repos for s in require_steps(hub, repo)
    ]


def _write_files(files: DifficultyFiles, scores: Difficulty, hardest: Sequence[ExampleRow]) -> None:
    from hubmerge.difficulty.difficulty import write_difficulty
    from hubmerge.flows.difficulty import draw_hardest

    if files.out:
        write_difficulty(scores, files.out)
    if files.picture and hardest:
        draw_hardest(scores, hardest, files.picture)


def _render(scores: Difficulty, hardest: Sequence[ExampleRow]) -> Group:
    parts = [_bins_table(scores), _loss_share_table((*scores.models, *scores.course))]
    if hardest and not hardest[0].is_image:
        parts.append(texts_table(hardest, "hardest texts"))
    return Group(*parts)


def _bins_table(scores: Difficulty) -> Table:
    rows = [
        (
            number, part.size, f"{part.el2n:.3f}", format_percent(part.accuracy),
            f"{part.margin:.2f}", format_percent(part.loss_share),
        )
        for number, part in enumerate(scores.by_bin, start=1)
    ]  # fmt: skip
    columns = ("bin>", "rows>", "EL2N>", "accuracy %>", "margin>", "share of loss %>")
    name = scores.task.partition("@")[0]
    title = f"{scores.count} rows of {scores.split} of {name}, easiest to hardest"
    return make_table(columns, rows, title=title)


def _loss_share_table(models: Sequence[ScoredModel]) -> Table:
    """The share of the loss in the three hardest bins, for each model."""
    bins = len(models[0].loss_share)
    first = bins - min(3, bins)
    bin_columns = [f"bin {number}>" for number in range(first + 1, bins + 1)]
    rows = [
        (
            model.label,
            format_percent(model.accuracy),
            *map(format_percent, model.loss_share[first:]),
        )
        for model in {(model.label, model.digest): model for model in models}.values()
    ]
    return make_table(("model", "accuracy %>", *bin_columns), rows, title="share of the loss, %")


def texts_table(examples: Sequence[ExampleRow], title: str) -> Table:
    """Texts with their class and the model's prediction."""
    rows = [
        (example.row, example.content[:_MAX_TEXT], example.label, example.predicted)
        for example in examples
    ]
    return make_table(("row>", "text", "class", "predicted"), rows, title=title)


def _to_json(scores: Difficulty, hardest: Sequence[ExampleRow]) -> dict[str, Any]:
    """Everything but the scores of the rows, which are in the file of --out."""
    return {
        "task": scores.task,
        "split": scores.split,
        "rows": scores.count,
        "digest": scores.digest,
        "models": [dataclasses.asdict(model) for model in scores.models],
        "course": [dataclasses.asdict(model) for model in scores.course],
        "bins": [dataclasses.asdict(part) for part in scores.by_bin],
        "hardest": [_example_to_json(example) for example in hardest],
    }


def _example_to_json(example: ExampleRow) -> dict[str, Any]:
    """An example with its text; an image has only its row number."""
    text = {} if example.is_image else {"text": example.content}
    return {
        "row": example.row,
        "class": example.label,
        "predicted": example.predicted,
        "el2n": example.score,
        **text,
    }
