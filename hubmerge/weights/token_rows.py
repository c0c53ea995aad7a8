"""Embeddings of models with other vocabularies, with their rows brought into one order by token.

Shapes: N rows, V tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from hubmerge.errors import CheckpointError, Failures, raise_together
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import Array
from hubmerge.weights.header import summarize_names
from hubmerge.weights.token_views import TokenExpert, base_view, expert_view
from hubmerge.weights.vocabulary import (
    Vocabulary,
    extended_tokenizer,
    read_vocabulary,
    same_tokenizer_files,
)

# The modules with a row for every token: embeddings, and what predicts tokens.
_TOKEN_MODULES = {
    "embed_tokens", "wte", "word_embeddings", "embed_in", "shared", "lm_head", "embed_out",
    "proj_out", "token_embedding", "tok_embeddings", "predictions", "vocab_projector",
}  # fmt: skip
_UNION_HINT = "Give --vocabulary base, which merges the rows of the base's tokens."


@dataclass(frozen=True)
class AlignedTokens:
    """Base and experts whose embeddings have the same rows.

    `size` is the new number of rows, None if it is the base's. `files` are the tokenizer files of
    the result that differ from the base's. `rows` are those of its tokens, None if rows are not
    matched by token. `notes` are sentences for the user.
    """

    base: Checkpoint
    experts: tuple[Checkpoint, ...]
    size: int | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    rows: Mapping[str, int] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()


def align_tokens(
    base: Checkpoint, experts: Sequence[TokenExpert], mode: Literal["base", "union"]
) -> AlignedTokens:
    """Bring the token rows of all experts into the order of the base's tokens.

    Rows of the base's tokens that an expert lacks do not change. With "base", other tokens are left
    out. With "union", they get rows after the base's, whose values are the mean of the experts that
    have them. Only tokenizers and headers are read here. Raises CheckpointError for tokenizers that
    cannot be read.
    """
    tensors, failures = _token_tensors(base), Failures()
    vocabulary = failures.run(partial(read_vocabulary, base.folder)) or Vocabulary({})
    read = [failures.run(partial(_read_tokens, expert, tensors)) for expert in experts]
    failures.raise_all()
    own = [tokens for tokens in read if tokens is not None]
    if not tensors:
        raise CheckpointError(
            f"{base.folder} has no embedding of tokens.", "Leave --vocabulary out."
        )
    new = _new_tokens(vocabulary, own, experts) if mode == "union" else []
    rows = {token: vocabulary.size + number for number, token in enumerate(new)}
    old_size = base.index[tensors[0]].shape[0]
    size = max(old_size, vocabulary.size + len(new))
    all_rows = {**vocabulary.rows, **rows}
    sources = [_source_rows(all_rows, size, theirs) for theirs in own]
    added = np.array(sorted(rows.values()), dtype=np.int64)
    base_rows = base_view(base, experts, sources, tensors, size, added)
    views = [
        expert_view(base_rows, expert, source, tensors)
        for expert, source in zip(experts, sources, strict=True)
    ]
    entries = [dict(_entry(token, own), id=rows[token]) for token in new]
    return AlignedTokens(
        base_rows,
        tuple(views),
        size if size != old_size else None,
        extended_tokenizer(base.folder, entries) if entries else {},
        all_rows,
        tuple(_notes(vocabulary, own, experts, mode, new)),
    )


def _read_tokens(expert: TokenExpert, tensors: Sequence[str]) -> Vocabulary:
    """The tokens for which an expert has rows; none for one that has no token tensor."""
    rows = expert.count_rows(tensors)
    if not rows:
        return Vocabulary({})
    vocabulary = read_vocabulary(expert.checkpoint.folder)
    stored = {token: row for token, row in vocabulary.rows.items() if row < rows}
    return replace(vocabulary, rows=stored)


def other_tokens(base: Checkpoint, expert: Checkpoint) -> list[str]:
    """The tokens that an expert has in rows where the base has other ones; none without tokenizers.

    Embeddings of equal size are merged by the number of a row.
    """
    if same_tokenizer_files(base.folder, expert.folder):
        return []
    try:
        ours, theirs = read_vocabulary(base.folder), read_vocabulary(expert.folder)
    except CheckpointError:
        return []
    by_row = {row: token for token, row in ours.rows.items()}
    return sorted(token for token, row in theirs.rows.items() if by_row.get(row, token) != token)


def _token_tensors(checkpoint: Checkpoint) -> list[str]:
    """The tensors with a row for each token, the embedding first."""
    named = [
        name
        for name, tensor in checkpoint.index.items()
        if set(name.split(".")) & _TOKEN_MODULES and tensor.shape
    ]
    matrices = [name for name in named if len(checkpoint.index[name].shape) == 2]
    if not matrices:
        return []
    size = max(checkpoint.index[name].shape[0] for name in matrices)
    tensors = [name for name in named if checkpoint.index[name].shape[0] == size]
    return sorted(tensors, key=lambda name: len(checkpoint.index[name].shape) != 2)


def _new_tokens(
    base: Vocabulary, own: Sequence[Vocabulary], experts: Sequence[TokenExpert]
) -> list[str]:
    """The tokens that only experts have, by their lowest row and then by name."""
    lowest: dict[str, int] = {}
    problems = []
    for vocabulary, expert in zip(own, experts, strict=True):
        new = [token for token in vocabulary.rows if token not in base.rows]
        fixed = [token for token in new if token not in vocabulary.added]
        if fixed:
            problems.append(
                f"{expert.label} has {summarize_names(fixed, 'token')} in the vocabulary of its "
                "tokenizer itself, which cannot be added to another one."
            )
        for token in new:
            lowest[token] = min(lowest.get(token, vocabulary.rows[token]), vocabulary.rows[token])
    raise_together(CheckpointError, problems, _UNION_HINT)
    return sorted(lowest, key=lambda token: (lowest[token], token))


def _entry(token: str, own: Sequence[Vocabulary]) -> Mapping[str, Any]:
    """What the tokenizers of experts say of an added token; the first of them, by its content."""
    entries = [vocabulary.added[token] for vocabulary in own if token in vocabulary.added]
    return min(entries, key=lambda entry: sorted(map(str, entry.items())))


def _source_rows(rows: Mapping[str, int], size: int, own: Vocabulary) -> Array:
    """For each row of the result [N], the row of an expert with the same token, or -1."""
    source = np.full(size, -1, np.int64)
    for token, row in rows.items():
        if row < size and token in own.rows:
            source[row] = own.rows[token]
    return source


def _notes(
    base: Vocabulary,
    own: Sequence[Vocabulary],
    experts: Sequence[TokenExpert],
    mode: str,
    new: Sequence[str],
) -> Iterator[str]:
    if new:
        yield f"Added to the vocabulary: {_tokens(new)}."
    for vocabulary, expert in zip(own, experts, strict=True):
        if not vocabulary.rows:
            continue  # it has no token tensor
        lacked = [token for token in base.rows if token not in vocabulary.rows]
        if lacked:
            yield f"{expert.label} lacks {_tokens(lacked)}: the base's rows are kept."
        left_out = [token for token in vocabulary.rows if token not in base.rows]
        if left_out and mode == "base":
            yield f"Left out of {expert.label}: {_tokens(left_out)}."


def _tokens(tokens: Sequence[str]) -> str:
    return summarize_names(tokens, "token")
