"""Rows that share a sequence are learned as if each had one; models that cannot do so are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from hubmerge.errors import UsageError
from hubmerge.learners.learner import Batch
from hubmerge.learners.packing import pack_rows, packed_batch
from hubmerge.learners.pair_encoder import PairEncoder
from hubmerge.learners.ranking import LanguageLearner, TargetScorer
from hubmerge.learners.row_encoder import IGNORED, RowEncoder
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.loading import load_model
from hubmerge.models.packed_attention import check_packing
from hubmerge.tasks.examples import TargetExample, TextExample
from tests.models.language_families import write_family

DECODERS = ("llama2", "llama3", "qwen", "gemma", "gpt2")
EXAMPLES = [
    TargetExample("one, two, three =", "1 2 3"),
    TargetExample("Question: is this true? Answer:", "Yes, it is."),
    TargetExample("The capital of France is", "Paris, and the cat sat on the mat."),
    TextExample("good films are fun"),
    TargetExample("a", "b"),
    TargetExample("The cat sat on the", "mat."),
]


def learner_of(folder: Path, implementation: str, max_tokens: int = 60) -> LanguageLearner:
    model: Any = load_model(folder, "target")
    model.module.set_attn_implementation(implementation)
    pairs = PairEncoder(model.tokenizer, is_seq2seq=False)
    return LanguageLearner(TargetScorer(model.module, False), RowEncoder(pairs, max_tokens))


def learned(learner: LanguageLearner) -> tuple[Batch, float, dict[str, Tensor]]:
    """The batch of all examples, its mean loss, and the gradients of that."""
    batch = learner.collate([learner.for_training(example, 0) for example in EXAMPLES])
    learner.network.zero_grad()
    loss = learner.loss(learner.network, batch) / learner.count_terms(batch)
    torch.autograd.backward(loss)
    gradients = {
        n: p.grad.clone() for n, p in learner.network.named_parameters() if p.grad is not None
    }
    return batch, loss.item(), gradients


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", DECODERS)
def test_loss_and_gradients_are_those_of_rows_apart(
    tmp_path: Path, family: str, implementation: str
) -> None:
    apart = learner_of(write_family(tmp_path / family, family), implementation)
    batch, loss, gradients = learned(apart)
    packed_rows, packed_loss, packed_gradients = learned(dataclasses.replace(apart, packs=True))
    assert len(packed_rows["input_ids"]) < len(batch["input_ids"]) == len(EXAMPLES)
    assert packed_rows["input_ids"].numel() < batch["input_ids"].numel()
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        largest = max(gradient.abs().max().item(), 1e-3)
        assert torch.allclose(packed_gradients[name], gradient, rtol=0, atol=1e-5 * largest), name


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_every_row_is_in_one_sequence_that_is_not_too_long(lengths: list[int], limit: int) -> None:
    sequences = pack_rows(lengths, limit)
    assert sorted(row for rows in sequences for row in rows) == list(range(len(lengths)))
    longest = max(sum(lengths[row] for row in rows) for rows in sequences)
    assert longest <= max(limit, *lengths)
    assert all(sequences)
    assert len(sequences) <= 2 * -(-sum(lengths) // max(limit, *lengths))


def test_rows_of_a_batch_by_hand() -> None:
    assert pack_rows([3, 1, 2, 4], 5) == [[3, 1], [0, 2]]
    texts = [torch.tensor(row) for row in ([11, 12, 13], [21], [31, 32], [41, 42, 43, 44])]
    labels = [torch.where(torch.arange(len(text)) > 0, text, IGNORED) for text in texts]
    batch = packed_batch(texts[:3], labels[:3], 4, 0, IGNORED)
    assert batch["input_ids"].tolist() == [[11, 12, 13], [31, 32, 21]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 12, 13], [IGNORED, 32, IGNORED]]
    padded = packed_batch([texts[0], texts[3]], [labels[0], labels[3]], 4, 0, IGNORED)
    assert padded["input_ids"].tolist() == [[41, 42, 43, 44], [11, 12, 13, 0]]
    assert padded["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert padded["labels"][1].tolist() == [IGNORED, 12, 13, IGNORED]


def model_of(module: Any, is_seq2seq: bool = False) -> LanguageModel:
    names: Any = None
    name = type(module).__name__
    return LanguageModel(module, names, module, None, is_seq2seq, name)


SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}


def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=3))


def gemma3() -> Any:
    config = Gemma3TextConfig(**SMALL, **HEADS, head_dim=8, sliding_window=4)
    return Gemma3ForCausalLM(config)


@pytest.mark.parametrize("make", [mistral, gemma3])
def test_sliding_windows_end_with_their_row(make: Any) -> None:
    torch.manual_seed(0)
    check_packing(model_of(make()))


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(**SMALL, state_size=4))


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4))


def opt() -> Any:
    """It uses positions for its embeddings, but not for its mask."""
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(**SMALL, **sizes))


@pytest.mark.parametrize("make", [mamba, bloom, opt])
def test_models_that_mix_rows_are_refused(make: Any) -> None:
    torch.manual_seed(0)
    module = make().train()
    with pytest.raises(UsageError, match=f"and {type(module).__name__} does not") as refused:
        check_packing(model_of(module))
    assert "Leave --pack out" in str(refused.value.hint)
    assert module.training


class BlindToPositions(torch.nn.Module):
    """A model that takes positions and does not use them."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def get_input_embeddings(self) -> Any:
        return self.module.get_input_embeddings()

    def forward(self, input_ids: Tensor, position_ids: Tensor, use_cache: bool) -> Any:
        return self.module(input_ids=input_ids, use_cache=use_cache)


def test_positions_that_are_ignored_are_noticed() -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="BlindToPositions does not"):
        check_packing(model_of(BlindToPositions(mistral())))
