"""The options of `hubmerge select`, and the request that they make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from hubmerge.byte_sizes import parse_bytes
from hubmerge.cli.options import (
    Base,
    Columns,
    Device,
    Heads,
    IncludePath,
    Metric,
    Option,
    StepPattern,
    find_tasks,
    split_names,
)
from hubmerge.cli.select_files import read_lock_file
from hubmerge.cli.select_moe import parse_moe_settings
from hubmerge.errors import UsageError, raise_together
from hubmerge.kinds import MOE
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.specs import MoeSpec

if TYPE_CHECKING:
    from hubmerge.choosing.merge_selection import SelectRequest

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


def read_moe_spec(target: str, options: SelectOptions) -> MoeSpec | None:
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


def make_request(repos: Sequence[str], target: str, options: SelectOptions) -> SelectRequest:
    """What these options ask for; raises UsageError."""
    from hubmerge.choosing.merge_selection import SelectRequest
    from hubmerge.weights.match_options import MatchOptions

    merges, seconds = _parse_budget(options.budget)
    return SelectRequest(
        repos=_parse_repos(repos),
        method=target,
        policy=options.policy,
        tasks=tuple(find_tasks(split_names(options.tasks), options.columns, options.include_path)),
        base=parse_ref(options.base) if options.base else None,
        against=read_lock_file(options.against) if options.against else None,
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


def _parse_budget(text: str | None) -> tuple[int | None, float | None]:
    """The number of merges, or the number of seconds."""
    if text is None:
        return None, None
    match = _BUDGET_PATTERN.fullmatch(text.strip())
    if not match:
        raise UsageError(f"--budget {text!r} is not a budget.", "Write 200 merges, 30m or 2h.")
    number, unit = int(match[1]), match[2]
    return (number, None) if not unit else (None, number * {"m": 60.0, "h": 3600.0}[unit])


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
