"""A token embedding and an output head that share one matrix, and when a merge separates them.

peft does not keep the tie: an adapter of the embedding alone, or a copy of it trained in full,
leaves the head as it was. To give the adapter's own outputs, the merge then stores the head as a
tensor of its own, and its configuration says `tie_word_embeddings: false`. (peft's own
merge_and_unload changes the one matrix, and with it the other side.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hubmerge.weights.adapter_names import TOKEN_ROWS, classify_tensors, find_renames
from hubmerge.weights.checkpoint import Checkpoint
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
    if not ties or not _is_tied(config, ties[0].head in checkpoint.index):
        return None
    return ties[0]


def separate_head(base: Checkpoint, experts: Sequence[Checkpoint]) -> Separated | None:
    """Give the base a head of its own if an adapter changes one side of a tie only.

    None if none does. The added head has the bytes of the embedding; no value is read. Raises
    CheckpointError if config.json is not a JSON object.
    """
    if base.kind != "full" or all(expert.kind != "lora" for expert in experts):
        return None
    tie = find_tie(base)
    if tie is None:
        return None
    view = _with_head(base, tie)
    adapters = tuple(
        number
        for number, expert in enumerate(experts)
        if expert.kind == "lora" and len(_changed_sides(view, expert, tie)) == 1
    )
    if not adapters:
        return None
    return Separated(view, tie, adapters)


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
    return Checkpoint(
        checkpoint.folder,
        checkpoint.kind,
        MappingProxyType({**index, tie.head: index[tie.embedding]}),
    )


def _changed_sides(base: Checkpoint, adapter: Checkpoint, tie: Tie) -> Collection[str]:
    tensors = classify_tensors(adapter.index)
    names = tensors.base_tensors()
    rename = find_renames(names, base.index)[0]
    sides = {tie.embedding, tie.head}
    if any(
        TOKEN_ROWS in module.parts and rename(module.target) in sides for module in tensors.modules
    ):
        return sides  # peft trains these rows for both
    return {rename(name) for name in names} & sides
