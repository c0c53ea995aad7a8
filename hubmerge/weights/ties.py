"""A token embedding and an output head that share one matrix, and when a merge separates them.

peft does not keep the tie: an adapter of the embedding alone, or a copy of it trained in full,
leaves the head as it was. To give the adapter's own outputs, the merge then stores the head as a
tensor of its own, and its configuration says `tie_word_embeddings: false`. (peft's own
merge_and_unload changes the one matrix, and with it the other side.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hubmerge.errors import UsageError
from hubmerge.weights.adapter_names import TOKEN_ROWS, classify_tensors, find_renames
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.conversions import conversions_of
from hubmerge.weights.model_config import TIE_KEY, read_model_config

# The embedding and the head that is tied to it, by architecture; the first that fits is used.
_TIES = (
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("model.language_model.embed_tokens.weight", "lm_head.weight"),
    ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
    ("transformer.wte.weight", "lm_head.weight"),
    ("wte.weight", "lm_head.weight"),
    ("transformer.word_embeddings.weight", "lm_head.weight"),
    ("gpt_neox.embed_in.weight", "embed_out.weight"),
    ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("model.shared.weight", "lm_head.weight"),
    ("shared.weight", "lm_head.weight"),
)
_WHISPER = ("model.decoder.embed_tokens.weight", "proj_out.weight")
# Tensors that other classes store twice: the end of the original's name and that of the copy's.
_ENCODER_COPIES = (
    ("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("embeddings.word_embeddings.weight", "vocab_projector.weight"),
    ("embeddings.word_embeddings.weight", "predictions.decoder.weight"),
)
_BIAS_COPIES = (
    ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("predictions.bias", "predictions.decoder.bias"),
    ("lm_head.bias", "lm_head.decoder.bias"),
)
_SHARED = "shared.weight"
_SHARED_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@dataclass(frozen=True)
class Tie:
    """The names of an embedding and of the head that is the same matrix."""

    embedding: str
    head: str


@dataclass(frozen=True)
class Separated:
    """A base whose head is a tensor of its own; `adapters` are the experts that need it."""

    base: Checkpoint
    tie: Tie
    adapters: tuple[int, ...]


def find_tie(checkpoint: Checkpoint) -> Tie | None:
    """The tie that the configuration of a model states; None without one, or if it is not known.

    If the configuration does not mention it, a causal language model without a head is tied. Raises
    CheckpointError if config.json is not a JSON object.
    """
    config = read_model_config(checkpoint.folder)
    pairs = (_WHISPER,) if config.get("model_type") == "whisper" else _TIES
    ties = [Tie(*pair) for pair in pairs if pair[0] in checkpoint.index]
    if not ties:
        return None
    head, embedding = map(checkpoint.index.get, (ties[0].head, ties[0].embedding))
    # `separate_head` adds a head with the bytes of the embedding.
    return ties[0] if _is_tied(config, head is not None and head != embedding) else None


def find_copies(checkpoint: Checkpoint) -> dict[str, str]:
    """The tensors that a model stores or may store twice: copy -> original, which is stored.

    They are the tied head, the embeddings of encoder and decoder that are `shared`, and the
    decoders of masked language models with their biases. Raises CheckpointError if config.json is
    not a JSON object.
    """
    index = checkpoint.index
    copies = {
        copy: original
        for end, copy in (*_ENCODER_COPIES, *_BIAS_COPIES)
        if (original := _only_name_with_end(index, end)) and copy != original
    }
    tied = read_model_config(checkpoint.folder).get(TIE_KEY) is not False
    if not tied:
        copies = {copy: original for copy, original in copies.items() if copy.endswith("bias")}
    for name in index:
        if name == _SHARED or name.endswith(f".{_SHARED}"):
            prefix = name.removesuffix(_SHARED)
            copies |= {f"{prefix}{copy}": name for copy in _SHARED_COPIES}
    if tie := find_tie(checkpoint):
        copies[tie.head] = tie.embedding
    return copies


def _only_name_with_end(names: Collection[str], end: str) -> str | None:
    found = [name for name in names if name == end or name.endswith(f".{end}")]
    return found[0] if len(found) == 1 else None


def separate_head(
    base: Checkpoint, experts: Sequence[Checkpoint], untie: bool = False
) -> Separated | None:
    """Give the base a head of its own if an adapter changes one side of a tie alone, or to `untie`.

    None if none does. The added head has the bytes of the embedding; no value is read. Raises
    CheckpointError if config.json is not a JSON object, and UsageError if there is no tie to untie.
    """
    tie = find_tie(base) if base.kind == "full" else None
    if tie is None:
        if untie:
            raise UsageError(
                f"{base.folder} has no tied head that --tied untie could separate.",
                "Leave --tied out.",
            )
        return None
    view = _with_head(base, tie)
    adapters = tuple(
        number
        for number, expert in enumerate(experts)
        if expert.kind == "lora" and _needs_own_head(view, expert, tie)
    )
    return Separated(view, tie, adapters) if adapters or untie else None


def _is_tied(config: Mapping[str, Any], has_head: bool) -> bool:
    text = config.get("text_config")
    stated = [
        part[TIE_KEY] for part in (config, text) if isinstance(part, dict) and TIE_KEY in part
    ]
    if stated:
        return stated[0] is True
    architectures = config.get("architectures") or ()
    generates = any(
        str(name).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        for name in architectures
    )
    return generates and not has_head


def _with_head(checkpoint: Checkpoint, tie: Tie) -> Checkpoint:
    """The checkpoint with the bytes of the embedding under the name of the head, too."""
    index = checkpoint.index
    if tie.head in index or tie.embedding not in index:
        return checkpoint
    return checkpoint.with_views(
        {tie.head: (index[tie.embedding], partial(checkpoint.read, tie.embedding))}
    )


def _needs_own_head(base: Checkpoint, adapter: Checkpoint, tie: Tie) -> bool:
    """Whether an adapter changes one side of a tie, or each in its own way."""
    tensors = classify_tensors(adapter.index)
    names = tensors.base_tensors()
    rename = find_renames(names, base.index, conversions_of(read_model_config(base.folder)))[0]
    rows = {rename(m.target) for m in tensors.modules if TOKEN_ROWS in m.parts}
    changed = {rename(name) for name in names} - rows  # peft trains these rows for both sides
    return bool(changed & {tie.embedding, tie.head})
