"""Base and experts as they are merged: with one vocabulary, and a head of its own if needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from hubmerge.errors import CheckpointError, Failures
from hubmerge.opening.merge_inputs import MergeInputs
from hubmerge.weights.adapter_match import match_adapter
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.expert_stacks import restack
from hubmerge.weights.full_match import match_full
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.match_options import MatchOptions
from hubmerge.weights.ties import Separated, separate_head
from hubmerge.weights.token_rows import AlignedTokens, align_tokens, other_tokens
from hubmerge.weights.token_views import TokenExpert


@dataclass(frozen=True)
class MatchedInputs:
    """The checkpoints of a merge, and what was changed in them."""

    base: Checkpoint
    experts: tuple[Checkpoint, ...]
    separated: Separated | None
    tokens: AlignedTokens
    labels: tuple[str, ...]

    def notes(self) -> Iterator[str]:
        """What was changed, in sentences."""
        yield from self.tokens.notes
        if self.separated and self.separated.adapters:
            labels = ", ".join(self.labels[number] for number in self.separated.adapters)
            tie = self.separated.tie
            yield (
                f"{labels} changes only one of {safe_name(tie.embedding)} and "
                f"{safe_name(tie.head)}, which are tied in the base: the result stores both, and "
                "its configuration says tie_word_embeddings: false."
            )


def match_inputs(inputs: MergeInputs, options: MatchOptions) -> MatchedInputs:
    """Bring the vocabularies together as the options say, and separate a tied head if needed.

    Raises CheckpointError for tokenizers and configurations that cannot be read, and UsageError for
    an option that decides nothing.
    """
    base, labels = inputs.base.checkpoint, tuple(source.label for source in inputs.sources)
    experts = tuple(_restacked(base, expert.checkpoint) for expert in inputs.experts)
    if base.kind != "full":
        return MatchedInputs(base, experts, None, AlignedTokens(base, experts), labels)
    separated = separate_head(base, experts, untie=options.tied == "untie")
    if separated:
        base = separated.base
    if options.vocabulary is None:
        notes = tuple(_notes_on_tokens(base, experts, labels))
        tokens = AlignedTokens(base, experts, notes=notes)
    else:
        failures = Failures()
        named = [
            failures.run(partial(_token_expert, base, expert, label, options))
            for expert, label in zip(experts, labels, strict=True)
        ]
        failures.raise_all()
        tokens = align_tokens(base, [e for e in named if e is not None], options.vocabulary)
    return MatchedInputs(tokens.base, tokens.experts, separated, tokens, labels)


def match_alone(
    base: Checkpoint, expert: Checkpoint, label: str, options: MatchOptions
) -> Checkpoint:
    """One expert as it is merged, whatever it is merged with: never with --vocabulary union.

    Raises CheckpointError for a tokenizer that cannot be read.
    """
    expert = restack(base, expert)
    if options.vocabulary is None:
        return expert
    return align_tokens(base, [_token_expert(base, expert, label, options)], "base").experts[0]


def _restacked(base: Checkpoint, expert: Checkpoint) -> Checkpoint:
    try:
        return restack(base, expert)
    except CheckpointError:  # reported when the expert is matched, which reads the same files
        return expert


def _token_expert(
    base: Checkpoint, expert: Checkpoint, label: str, options: MatchOptions
) -> TokenExpert:
    if expert.kind == "lora":
        adapter = match_adapter(base, expert, label, options).adapter
        return TokenExpert(expert, label, adapter.replacements)
    if expert.kind != "full":
        return TokenExpert(expert, label, {})
    match = match_full(base, expert, label, options)
    by_own = {own: name for name, own in match.names.items()}
    copies = {
        copy: by_own[original] for copy, original in match.copies.items() if original in by_own
    }
    return TokenExpert(expert, label, match.names, copies)


def _notes_on_tokens(
    base: Checkpoint, experts: tuple[Checkpoint, ...], labels: tuple[str, ...]
) -> Iterator[str]:
    for expert, label in zip(experts, labels, strict=True):
        tokens = other_tokens(base, expert) if expert.kind == "full" else []
        if tokens:
            yield (
                f"{label} has {summarize_names(tokens, 'token')} in rows where the base has other "
                "tokens: rows are merged by their number, and by token with --vocabulary."
            )
