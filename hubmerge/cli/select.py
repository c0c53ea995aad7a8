"""hubmerge select"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from hubmerge.byte_sizes import parse_bytes
from hubmerge.cards.figures import heat_map_png, selection_png
from hubmerge.cards.selection import CSV, CURVES, HEAT_MAP, selection_csv
from hubmerge.cli.options import (
    Base,
    Columns,
    Device,
    DryRun,
    Heads,
    IncludePath,
    Metric,
    Option,
    StepPattern,
    find_tasks,
    split_names,
)
from hubmerge.cli.select_moe import choose_starts, parse_moe_settings
from hubmerge.cli.select_workers import WorkerOptions
from hubmerge.cli.selection_tables import (
    SelectionOutput,
    cut_notes,
    describe_conclusion,
    selection_tables,
    skipped_notes,
)
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.durable import write_atomic
from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.kinds import MOE
from hubmerge.lock import LOCK_FILE, Lock
from hubmerge.lock_file import parse_lock, read_lock_bytes
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.specs import MoeSpec

if TYPE_CHECKING:
    from hubmerge.choosing.merge_selection import PreparedSelection, SelectRequest
    from hubmerge.hub.client import Hub
    from hubmerge.progress import Progress

INCONCLUSIVE = 4
_DEFAULT_BAND = 1.0
_BUDGET_PATTERN = re.compile(r"([1-9]\d{0,6})(m|h|)")


@dataclass(frozen=True)
class SelectOptions:
    """What is chosen, on which data, and how much may be measured."""

    policy: Annotated[
        str | None,
        Option(help="Policy whose choice wins: last, early-stop, uniform ... [best on validation]"),
    ] = None
    tasks: Annotated[
        str | None,
        Option(
            help="Tasks, if the manifests name none or lm-eval:NAME: one for each repository, in "
            "the same order."
        ),
    ] = None
    columns: Columns = None
    metric: Metric = None
    include_path: IncludePath = None
    settings: Annotated[
        list[str] | None,
        Option("--set", help="With --target moe, options of `moerge`: train_steps=300, lr=2e-4."),
    ] = None
    base: Base = None
    heads: Heads = None
    tied: Annotated[
        Literal["base"] | None,
        Option(help="Leave out output heads that the base ties to its embedding."),
    ] = None
    vocabulary: Annotated[
        Literal["base"] | None, Option(help="If tokens differ, merge those of the base.")
    ] = None
    step_pattern: StepPattern = None
    budget: Annotated[
        str | None,
        Option(
            help="Most merges to measure, 200, or with --target moe training steps; or time, 30m "
            "or 2h. [no limit]"
        ),
    ] = None
    memory: Annotated[
        str | None, Option(help="Most memory for merges, such as 8GB. [half of what is free]")
    ] = None
    against: Annotated[
        Path | None, Option(help="An earlier lock; the new choice must beat its choice.")
    ] = None
    band: Annotated[
        float, Option(min=0, help="Choose the earliest steps within this many standard errors.")
    ] = _DEFAULT_BAND
    objective: Annotated[
        Literal["mean", "worst", "pareto"],
        Option(
            help="Maximise the mean accuracy over tasks, that of the worst task, or the mean, and "
            "list all trials that are best for some balance of tasks."
        ),
    ] = "mean"
    exhaustive: Annotated[
        bool,
        Option(
            "--exhaustive",
            help="Measure every point of the paper's grid on all examples; with --target moe, "
            "train every start to the end.",
        ),
    ] = False
    seed: Annotated[int, Option(min=0, help="Seed of the bootstrap.")] = 0
    device: Device = None


@dataclass(frozen=True)
class SelectFiles:
    """Where a selection is written to."""

    lock: Annotated[Path, Option(help="File to write the lock to.")] = Path(LOCK_FILE)
    out: Annotated[
        Path | None, Option(help="Folder for heatmap.png, curves.png and selection.csv. [none]")
    ] = None

    def check(self) -> None:
        """Raises UsageError if a path is unusable, or holds a file that is not a lock."""
        path, out = self.lock, self.out
        if out is not None and out.exists() and not out.is_dir():
            raise UsageError(f"--out {out} is not a folder.", "Choose another path.")
        if path.is_dir():
            raise UsageError(f"--lock {path} is a folder.", f"Write --lock {path / LOCK_FILE}.")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"There is no folder {path.absolute().parent}.", "Create it first.")
        if path.exists():
            _check_replaceable(path)

    def write(self, lock: Lock, locks: Path) -> None:
        """Write the lock, a copy in `locks` that `hubmerge retain` reads, and the figures."""
        data = lock.to_bytes()
        locks.mkdir(parents=True, exist_ok=True)
        write_atomic(locks / f"{hashlib.sha256(data).hexdigest()[:12]}.lock", data)
        write_atomic(self.lock, data, mode=0o644)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomic(self.out / HEAT_MAP, heat_map_png(lock), mode=0o644)
            write_atomic(self.out / CURVES, selection_png(lock), mode=0o644)
            write_atomic(self.out / CSV, selection_csv(lock).encode(), mode=0o644)


@command
def select(
    session: Session,
    repos: Annotated[list[str], typer.Argument(help="Repositories of experts: owner/name ...")],
    *,
    target: Annotated[
        str, Option(help="What to choose steps for: a merge method, or moe for a mixture.")
    ],
    options: SelectOptions,
    files: SelectFiles,
    workers: WorkerOptions,
    dry_run: DryRun = False,
) -> None:
    """Choose the step of each expert and pin the choice in a lock.

    Only validation data decide, and gains are measured on examples that did not choose. With
    --target moe, many starts are trained for a few steps, and the best become the start of the
    mixture. Exit code 4: the choice is not better beyond the noise than the last steps and the base
    (or for moe, than an early start).

    Example: hubmerge select me/cars me/birds --target ties --budget 30m
    """
    moe_spec = _read_moe_spec(target, options)
    workers.check(is_merge=moe_spec is None)
    files.check()
    request = _make_request(repos, target, options)
    with session.open_hub(options.step_pattern) as hub, session.progress() as progress:
        if moe_spec is None:
            output = _choose_steps(session, hub, request, workers, dry_run, progress)
        else:
            output = choose_starts(session, hub, request, moe_spec, dry_run, progress)
    if output is None:
        return
    files.write(output.lock, session.home / "locks")
    session.print_result(output.tables, output.data)
    for sentence in (*output.notes, output.conclusion(files.lock)):
        session.print_message(sentence)
    if not output.lock.conclusive:
        raise typer.Exit(INCONCLUSIVE)


def _read_moe_spec(target: str, options: SelectOptions) -> MoeSpec | None:
    """The spec of the mixture of experts, or None for a merge; raises UsageError."""
    if target == MOE:
        _check_moe_options(options)
        return parse_moe_settings(options.settings or [])
    if options.settings:
        raise UsageError(
            "--set is for --target moe: for a merge, the selection tunes the parameters.",
            "Leave --set out.",
        )
    return None


def _make_request(repos: Sequence[str], target: str, options: SelectOptions) -> SelectRequest:
    from hubmerge.choosing.merge_selection import SelectRequest
    from hubmerge.weights.match_options import MatchOptions

    merges, seconds = _parse_budget(options.budget)
    return SelectRequest(
        repos=_parse_repos(repos),
        method=target,
        policy=options.policy,
        tasks=tuple(find_tasks(split_names(options.tasks), options.columns, options.include_path)),
        base=parse_ref(options.base) if options.base else None,
        against=_read_lock_file(options.against) if options.against else None,
        merges=merges,
        seconds=seconds,
        memory=parse_bytes(options.memory, "--memory") if options.memory else None,
        seed=options.seed,
        band=options.band,
        exhaustive=options.exhaustive,
        objective=options.objective,
        device=options.device,
        options=MatchOptions(options.tied, options.heads, options.vocabulary),
        options_as_typed=_options_as_typed(options),
        metric=options.metric,
    )


def _parse_repos(repos: Sequence[str]) -> tuple[ModelRef, ...]:
    """The repositories; raises UsageError for one that is named twice."""
    refs = [parse_ref(text) for text in repos]
    repeated = sorted({str(ref) for ref in refs if refs.count(ref) > 1})
    raise_together(
        UsageError,
        [f"{ref} is named more than once." for ref in repeated],
        "Name it once; a repository that repeats a task with another seed has a name of its own.",
    )
    return tuple(refs)


def _choose_steps(
    session: Session,
    hub: Hub,
    request: SelectRequest,
    workers: WorkerOptions,
    dry_run: bool,
    progress: Progress,
) -> SelectionOutput | None:
    """Choose steps for a merge; a dry run prints the plan and returns None."""
    from hubmerge.flows import select as flow
    from hubmerge.tasks.lm_eval_docs import carved_note

    prepared = flow.prepare_selection(hub, request, progress)
    rows = {split.task.name: len(split.row_order) for split in prepared.splits}
    for note in flow.few_rows_notes(rows):
        session.print_message(f"Note: {note}")
    for note in filter(None, (carved_note(split.task) for split in prepared.splits)):
        session.print_message(f"Note: {note}")
    if proxy_note := prepared.proxy_note:
        session.print_message(f"Note: {proxy_note}")
    if dry_run:
        session.print_result(_plan_table(prepared), _plan_to_json(prepared))
        return None
    log = session.trial_log
    with workers.open(session, prepared) as evaluator:
        result = flow.select(prepared, log, progress, evaluator)
    lock = result.lock
    return SelectionOutput(
        lock=lock,
        tables=selection_tables(lock),
        data=json.loads(lock.to_bytes()),
        notes=[
            *skipped_notes(log),
            *cut_notes(lock.cut),
            *flow.unfinished_notes(prepared.splits),
        ],
        conclusion=partial(describe_conclusion, lock, result.seconds),
    )


def _check_moe_options(options: SelectOptions) -> None:
    """Raises UsageError for options that only a selection for a merge has."""
    problems = []
    if options.against is not None:
        problems.append("--against is for merges: with moe, the choice must beat an early start.")
    if options.band != _DEFAULT_BAND:
        problems.append("--band is for merges: with moe, the interval is always 95 %.")
    if options.objective != "mean":
        problems.append("--objective is for merges: with moe, the mean over tasks is maximised.")
    for name in ("heads", "tied", "vocabulary"):
        if getattr(options, name) is not None:
            problems.append(f"--{name} is for merges: the experts of a mixture are adapters.")
    raise_together(UsageError, problems, "Leave it out.")


def _parse_budget(text: str | None) -> tuple[int | None, float | None]:
    """The number of merges, or the number of seconds."""
    if text is None:
        return None, None
    match = _BUDGET_PATTERN.fullmatch(text.strip())
    if not match:
        raise UsageError(f"--budget {text!r} is not a budget.", "Write 200 merges, 30m or 2h.")
    number, unit = int(match[1]), match[2]
    return (number, None) if not unit else (None, number * {"m": 60.0, "h": 3600.0}[unit])


def _read_lock_file(path: Path) -> Lock:
    return parse_lock(read_lock_bytes(path), str(path))


def _check_replaceable(path: Path) -> None:
    """Raises UsageError for a file that is not a lock: it is probably not meant to be replaced."""
    try:
        _read_lock_file(path)
    except IntegrityError as error:
        raise UsageError(
            f"{path} exists and is not a lock.", "Choose another path with --lock."
        ) from error


def _options_as_typed(options: SelectOptions) -> tuple[str, ...]:
    """The options that the lock repeats in its command, as they were typed."""
    values = {
        "tasks": options.tasks,
        "columns": options.columns,
        "metric": options.metric,
        "include-path": options.include_path,
        "against": options.against,
    }
    pairs = [(name, str(value)) for name, value in values.items() if value is not None]
    pairs += [("set", setting) for setting in options.settings or []]
    return tuple(word for name, value in pairs for word in (f"--{name}", value))


def _plan_table(prepared: PreparedSelection) -> Table:
    pool = prepared.pool
    rows: Sequence[tuple[object, ...]] = [
        (
            task.name,
            len(candidates),
            " ".join(str(candidate.step) for candidate in candidates),
            len(split.row_order),
        )
        for task, candidates, split in zip(
            pool.tasks, pool.candidates, prepared.splits, strict=True
        )
    ]
    title = f"would choose for {prepared.method.name}: {', '.join(prepared.policies)}"
    return make_table(("task", "candidates>", "steps", "validation rows>"), rows, title=title)


def _plan_to_json(prepared: PreparedSelection) -> dict[str, object]:
    pool = prepared.pool
    return {
        "target": prepared.method.name,
        "policies": prepared.policies,
        "tasks": {
            task.id: {
                "candidates": [candidate.source.label for candidate in candidates],
                "rows": len(split.row_order),
            }
            for task, candidates, split in zip(
                pool.tasks, pool.candidates, prepared.splits, strict=True
            )
        },
    }
