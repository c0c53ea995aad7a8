"""From the opened inputs of a merge to a checked plan, with the heads beside it and its notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hubmerge.errors import CheckpointError, Failures, UsageError, raise_together
from hubmerge.merging.plan import Expert, MergePlan, check_checkpoints, check_plan
from hubmerge.merging.settings import for_tensors
from hubmerge.opening.expert_heads import expert_notes, find_heads, find_kept_heads
from hubmerge.opening.matched_inputs import MatchedInputs, match_inputs
from hubmerge.opening.merge_inputs import MergeInputs
from hubmerge.opening.stacked_inputs import StackedInputs, stack_inputs
from hubmerge.weights.embedding_match import find_disagreement, find_module_files, stack_notes
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.kept_heads import KeptHead
from hubmerge.weights.match_options import MatchOptions
from hubmerge.weights.token_rows import AlignedTokens

Heads = Mapping[str, Path | KeptHead]


@dataclass(frozen=True)
class PlannedMerge:
    """A plan that was checked, what was changed in its inputs, and the heads beside the merge."""

    plan: MergePlan
    matched: MatchedInputs
    heads: Heads = field(default_factory=dict)

    def notes(self, inputs: MergeInputs) -> Iterator[str]:
        """What differs between the experts and the base, in sentences."""
        yield from expert_notes(inputs.experts)
        for expert, vector in zip(self.plan.experts, self.plan.vectors, strict=True):
            yield from stack_notes(self.plan.base.folder, expert.checkpoint.folder, expert.name)
            if vector.adapter is None:
                yield from vector.full.notes(expert.name)
            elif vector.adapter.head:
                names = summarize_names(vector.adapter.head)
                yield f"{expert.name} has a head of its own, {names}: it is not merged."
        if self.plan.module_files:
            yield "The base has no modules of an embedding model: those of the experts are kept."
        if kept := [name for name, head in self.heads.items() if isinstance(head, KeptHead)]:
            yield f"Beside the merge: {', '.join(map(safe_name, kept))}."


def plan_merge(
    inputs: MergeInputs,
    options: MatchOptions,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    shard_size: int | None = None,
) -> PlannedMerge:
    """Match the experts with the base, and check everything that headers show.

    Raises UsageError or CheckpointError, with all that is wrong with any of the experts.
    """
    failures = Failures(inputs.failures)
    matched = failures.run(lambda: match_inputs(inputs, options))
    if matched is None:
        failures.raise_all()
    assert matched is not None
    stacked = stack_inputs(matched, inputs)
    plan = MergePlan(
        base=stacked.base,
        experts=tuple(
            Expert(expert, s.content_key, s.weight, s.label, keep=s.keep, intruders=s.intruders)
            for expert, s in zip(stacked.experts, stacked.sources, strict=True)
        ),
        method=inputs.method,
        params=inputs.params,
        dtype=dtype,
        allow_nonfinite=allow_nonfinite,
        separate_head=matched.separated is not None,
        options=options,
        vocabulary_size=matched.tokens.size,
        tokenizer_files=matched.tokens.files,
        settings=for_tensors(inputs.settings, stacked.base.index),
        config=stacked.config,
        shard_size=shard_size,
        module_files=_find_module_files(stacked, failures),
    )
    # Without the experts that were left out, their weights do not sum up as they would.
    check = check_checkpoints if inputs.failures else check_plan
    failures.run(lambda: check(plan))
    failures.raise_all()
    return PlannedMerge(plan, matched, _find_all_heads(inputs, plan, matched.tokens))


def _find_module_files(stacked: StackedInputs, failures: Failures) -> Mapping[str, bytes]:
    """The files of the modules of embedding models, if only the experts have them."""
    labels = [f"Expert {source.label}" for source in stacked.sources]

    def find() -> Mapping[str, bytes]:
        problems = list(find_disagreement(stacked.base, stacked.experts, labels))
        hints = dict.fromkeys(hint for _, hint in problems)
        raise_together(CheckpointError, [problem for problem, _ in problems], " ".join(hints))
        return find_module_files(stacked.base, stacked.experts)

    return failures.run(find) or {}


def _find_all_heads(inputs: MergeInputs, plan: MergePlan, tokens: AlignedTokens) -> Heads:
    """The heads beside the merge: those of trained experts, and those that are not merged."""
    heads: dict[str, Path | KeptHead] = {**find_heads(inputs.experts)}
    if plan.options.heads == "keep":
        if plan.config is not None:
            raise UsageError(
                "--heads keep needs whole models, and here layers are merged.", "Give --heads drop."
            )
        kept = find_kept_heads(inputs.experts, plan.vectors, tokens)
        twice = sorted(heads.keys() & kept.keys())
        problems = [f"Two experts would have the head {name}." for name in twice]
        raise_together(UsageError, problems, "Rename a folder.")
        heads |= kept
    return heads
