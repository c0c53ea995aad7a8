"""The options of `hubmerge merge`, and the request that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from hubmerge.byte_sizes import parse_bytes
from hubmerge.cli.options import (
    Base,
    Dtype,
    Heads,
    LockOptions,
    Option,
    ResultOptions,
    StepPattern,
    Tied,
    Vocabulary,
    parse_licence,
    parse_settings,
)
from hubmerge.errors import UsageError
from hubmerge.refs import parse_ref

if TYPE_CHECKING:
    from hubmerge.flows.prepared_merge import MergeRequest
    from hubmerge.mergekit.merge import MergekitMerge
    from hubmerge.refs import ModelRef


@dataclass(frozen=True)
class MergeOptions:
    """How the experts are merged."""

    config: Annotated[
        Path | None, Option("--config", "-c", help="Merge what a configuration of mergekit says.")
    ] = None
    export_mergekit: Annotated[
        Path | None,
        Option("--export-mergekit", help="Also write the merge as a configuration of mergekit."),
    ] = None
    method: Annotated[str | None, Option(help="Name from `hubmerge methods`. [ties]")] = None
    base: Base = None
    step_pattern: StepPattern = None
    settings: Annotated[
        list[str] | None, Option("--set", help="Parameter of the method: name=value.")
    ] = None
    as_lora: Annotated[
        int | None,
        Option(
            "--as-lora", help="Write a LoRA of the base, of this rank, instead of whole weights."
        ),
    ] = None
    dtype: Dtype = None
    heads: Heads = None
    tied: Tied = None
    vocabulary: Vocabulary = None
    shard_size: Annotated[
        str | None, Option(help="Most bytes in a file of the result: 5GB. [files like the base's]")
    ] = None
    allow_nonfinite: Annotated[
        bool, Option("--allow-nonfinite", help="Merge even NaN and infinity.")
    ] = False
    threads: Annotated[
        int | None, Option(min=1, help="Threads that merge; the result is the same. [all cores]")
    ] = None
    device: Annotated[
        str, Option(help="Where to compute: cpu, cuda, cuda:1 ...; the result is the same. [cpu]")
    ] = "cpu"
    pull_request: Annotated[
        bool, Option("--pull-request", help="Propose it to --push instead of committing to main.")
    ] = False


def make_request(
    experts: list[str] | None,
    options: MergeOptions,
    lock_options: LockOptions,
    result_options: ResultOptions,
) -> MergeRequest:
    from hubmerge.flows.prepared_merge import MergeRequest
    from hubmerge.weights.match_options import MatchOptions

    return MergeRequest(
        config=_read_config(options.config) if options.config else None,
        experts=tuple(parse_ref(text) for text in experts or ()),
        method=options.method or "ties",
        settings=parse_settings(options.settings or [], "density=0.2"),
        base=parse_ref(options.base) if options.base else None,
        lock=lock_options.lock,
        policy=lock_options.policy,
        locked=lock_options.locked,
        out=result_options.out,
        push=result_options.target,
        private=result_options.private,
        pull_request=options.pull_request,
        dtype=options.dtype,
        replace=result_options.replace,
        allow_nonfinite=options.allow_nonfinite,
        as_lora=options.as_lora,
        shard_size=_parse_shard_size(options.shard_size),
        licence=parse_licence(result_options.licence),
        dry_run=result_options.dry_run,
        threads=options.threads,
        device=None if options.device == "cpu" else options.device,
        options=MatchOptions(options.tied, options.heads, options.vocabulary),
        export=options.export_mergekit,
    )


def _parse_shard_size(text: str | None) -> int | None:
    if text is None:
        return None
    if not (size := parse_bytes(text, "--shard-size")):
        raise UsageError("--shard-size 0 has no room for a tensor.", "Write 5GB.")
    return size


def check_options(
    experts: list[str] | None,
    options: MergeOptions,
    lock_options: LockOptions,
    result_options: ResultOptions,
) -> None:
    """Raises UsageError for options that exclude or need each other."""
    if options.config is not None:
        _check_config_alone(experts, options, lock_options)
    else:
        lock_options.check(experts)
    if lock_options.lock is not None:
        _check_lock_alone(experts, options)
    if options.as_lora is not None and options.allow_nonfinite:
        raise UsageError(
            "--allow-nonfinite: a matrix with NaN or infinity has no factors for --as-lora.",
            "Leave one of the two out.",
        )
    if options.as_lora is not None and options.shard_size is not None:
        raise UsageError(
            "An adapter has one file: --shard-size is for whole weights.",
            "Leave one of --as-lora and --shard-size out.",
        )
    if options.pull_request:
        _check_pull_request(result_options.target, result_options.private)


def _read_config(path: Path) -> MergekitMerge:
    from hubmerge.mergekit.config import read_mergekit_config
    from hubmerge.mergekit.translation import translate_config

    return translate_config(read_mergekit_config(path))


def _check_config_alone(
    experts: list[str] | None, options: MergeOptions, lock_options: LockOptions
) -> None:
    """A configuration decides everything but what hubmerge asks where models differ."""
    values = {
        "experts": experts,
        "--lock": lock_options.lock,
        "--policy": lock_options.policy,
        "--locked": lock_options.locked,
        "--method": options.method,
        "--base": options.base,
        "--set": options.settings,
        "--dtype": options.dtype,
        "--vocabulary": options.vocabulary,
        "--export-mergekit": options.export_mergekit,
    }
    _check_alone("--config", values, "Write it into the file, or leave --config out.")


def _check_lock_alone(experts: list[str] | None, options: MergeOptions) -> None:
    """A lock already decides the experts, the method, its parameters and the number format."""
    values = {
        "experts": experts,
        "--method": options.method,
        "--set": options.settings,
        "--dtype": options.dtype,
        "--heads": options.heads,
        "--tied": options.tied,
        "--vocabulary": options.vocabulary,
    }
    _check_alone("--lock", values, "Leave them out, or make another lock with `hubmerge select`.")


def _check_alone(option: str, others: Mapping[str, object], hint: str) -> None:
    """Raise UsageError if another option is given that this one already decides."""
    if given := [name for name, value in others.items() if value]:
        raise UsageError(
            f"{option} decides what is merged and how: {', '.join(given)} cannot be given as well.",
            hint,
        )


def _check_pull_request(target: ModelRef | None, private: bool) -> None:
    if target is None:
        raise UsageError("--pull-request needs a repository.", "Name it with --push owner/name.")
    if target.revision:
        raise UsageError(
            "A pull request has no tag.",
            f"Write --push {target.repo_id}, and tag the commit when it is merged.",
        )
    if private:
        raise UsageError(
            "--private makes a new repository, and a pull request needs an existing one.",
            "Leave --private out.",
        )
