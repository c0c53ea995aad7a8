"""Embeddings: what a batch learns, how documents are ranked, and the metrics of ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hubmerge.errors import CheckpointError
from hubmerge.learners.embedding import (
    EmbeddingLearner,
    embedding_learner,
    find_excluded,
    similarity,
)
from hubmerge.learners.retrieval import embed_documents, rank_documents
from hubmerge.models.adapter import add_adapter
from hubmerge.models.embedder import load_embedder
from hubmerge.models.loading import load_model
from hubmerge.models.pooling import POOLING
from hubmerge.specs import TrainSpec
from hubmerge.tasks.examples import PairExample
from hubmerge.tasks.retrieval_metrics import RANK_METRICS
from tests.models.embedders import STACK, tiny_embedder, write_modules

HIDDEN = torch.tensor([[[1.0], [2.0], [6.0]], [[4.0], [8.0], [100.0]]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedder(tmp_path_factory.mktemp("embedder") / "base")


@pytest.mark.parametrize(("mode", "first", "second"), [
    ("mean", 3.0, 6.0),
    ("mean_sqrt_len_tokens", 9 / math.sqrt(3), 12 / math.sqrt(2)),
    ("weightedmean", (1 + 4 + 18) / 6, (4 + 16) / 3),
    ("max", 6.0, 8.0),
    ("cls", 1.0, 4.0),
    ("lasttoken", 6.0, 8.0),
])  # fmt: skip
def test_padding_is_not_pooled(mode: str, first: float, second: float) -> None:
    assert POOLING[mode](HIDDEN, MASK).flatten().tolist() == pytest.approx([first, second])


@pytest.mark.parametrize(("metric", "values"), [
    # One document first, one document in eleventh place, and two documents in second and fourth.
    ("ndcg_at_10", [1, 0, (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3))]),
    ("mrr_at_10", [1, 0, 1 / 2]),
    ("recall_at_10", [1, 0, 1]),
    ("accuracy_at_1", [1, 0, 0]),
])  # fmt: skip
def test_metrics_of_ranks(metric: str, values: list[float]) -> None:
    measured = [RANK_METRICS[metric](ranks) for ranks in ([0], [10], [1, 3])]
    assert measured == pytest.approx(values)


def test_recall_and_ndcg_count_documents_that_are_far_below() -> None:
    assert RANK_METRICS["recall_at_10"]([0, 10]) == 0.5
    best = 1 + 1 / math.log2(3)
    assert RANK_METRICS["ndcg_at_10"]([0, 10]) == pytest.approx(1 / best)


def test_equal_documents_are_ranked_by_their_place_in_the_data() -> None:
    documents = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 1]])
    queries = torch.tensor([[2.0, 0]])
    assert rank_documents(queries, (documents, True), [[0, 1, 2, 3]]) == [[0, 3, 1, 2]]
    assert rank_documents(queries, (documents, False), [[3, 1]]) == [[2, 3]]  # by dot product


def test_documents_that_belong_to_an_anchor_are_no_negatives() -> None:
    rows = [("a", "one"), ("b", "two"), ("a", "three"), ("c", "one")]
    assert find_excluded(rows).int().tolist() == [
        [0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0],
    ]  # fmt: skip
    triples = [("a", "one", "two"), ("b", "two", "three")]
    assert find_excluded(triples).int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]


class Lookup(nn.Module):
    """The embedding of a text is that of its only token."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        embedded = tuple(self.table[ids[:, 0]] for ids in inputs[::2])
        return embedded[0] if len(embedded) == 1 else embedded


def lookup_batch(excluded: list[list[int]], documents: list[int]) -> dict[str, Tensor]:
    tokens = {"anchor": torch.tensor([[0], [1]]), "document": torch.tensor(documents)[:, None]}
    batch = {f"{side}_ids": ids for side, ids in tokens.items()}
    batch |= {f"{side}_mask": torch.ones_like(ids) for side, ids in tokens.items()}
    return {**batch, "excluded": torch.tensor(excluded).bool()}


def test_the_loss_of_a_row_is_the_cross_entropy_of_its_positive() -> None:
    table = torch.tensor([[1.0, 0], [0, 3], [5, 5]])
    learner = EmbeddingLearner(Lookup(table), None, 8)
    batch = lookup_batch([[0, 0], [0, 0]], [0, 2])
    # Cosines of the first anchor are 1 and 0.7, those of the second 0 and 0.7.
    near, cosine = 20 * 1.0, 20 / math.sqrt(2)
    first = math.log(math.exp(near) + math.exp(cosine)) - near
    second = math.log(math.exp(0) + math.exp(cosine)) - cosine
    loss = learner.loss(learner.network, batch)
    assert loss.item() == pytest.approx(first + second, rel=1e-5)
    assert learner.count_terms(batch) == 2
    predictions, references = learner.predict(learner.network, batch)
    assert predictions.tolist() == references.tolist() == [[0], [1]]
    alone = lookup_batch([[0, 1], [0, 0]], [0, 2])
    assert learner.loss(learner.network, alone).item() == pytest.approx(second, abs=1e-7)


def test_prompts_and_lengths_are_those_of_the_model(tmp_path: Path) -> None:
    folder = tiny_embedder(tmp_path / "base")
    write_modules(folder, prompts={"query": "the cat ", "passage": "the dog "}, max_tokens=7)
    learner = embedding_learner(load_model(folder, "pairs"), 512)
    assert learner.settings == (7, "the cat ", "the dog ", False)
    row = learner.for_evaluation(PairExample("sat", "on the mat and the mat", "good films"))
    plain = EmbeddingLearner(learner.network, learner.tokenizer, 7)
    same = plain.for_evaluation(PairExample("the cat sat", "the dog on the mat and the mat"))
    assert row["input_ids"].tolist() == same["input_ids"].tolist()
    assert row["targets"][0].tolist() == same["targets"][0].tolist()
    assert len(row["targets"][0]) == 7
    batch = learner.collate([row, row])
    assert batch["document_ids"].shape == (4, 7)
    assert batch["excluded"].int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_embeddings_do_not_depend_on_the_batch(folder: Path) -> None:
    model = load_model(folder, "pairs")
    learner = embedding_learner(model, 512)
    texts = ["the cat sat on the mat and the dog did not", "good", "bad films are dull"]
    tokens = learner.encode_documents(texts)
    device = torch.device("cpu")
    together, _ = embed_documents(learner, learner.network, tokens, 3, device)
    apart, _ = embed_documents(learner, learner.network, tokens, 1, device)
    assert torch.allclose(together, apart, atol=1e-6)
    assert together.shape == (3, model.width)
    assert similarity(together, apart, True).diagonal().tolist() == pytest.approx([1, 1, 1])


def test_a_model_with_broken_weights_is_not_ranked(folder: Path) -> None:
    model = load_model(folder, "pairs")
    with torch.no_grad():
        model.module.get_submodule("2_Dense").linear.weight[0, 0] = torch.nan
    learner = embedding_learner(model, 512)
    tokens = learner.encode_documents(["good"])
    with pytest.raises(CheckpointError, match="not finite"):
        embed_documents(learner, learner.network, tokens, 1, torch.device("cpu"))


def test_an_adapter_changes_the_transformer_alone(folder: Path) -> None:
    model = load_model(folder, "pairs")
    spec = TrainSpec(base="a/b", task="t", to="a/c", tune="lora", rank=2)
    adapted = add_adapter(model, spec, "a/b", "0")
    trained = [name for name, p in adapted.peft_model.named_parameters() if p.requires_grad]
    assert trained
    assert not [name for name in trained if "2_Dense" in name or "pooler" in name]


def test_all_weights_are_saved_again(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, "pairs")
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 1
    write_modules(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = (folder / "tokenizer_config.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    model.save(tmp_path)
    loaded = load_model(tmp_path, "pairs")
    state = loaded.module.state_dict()
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.module.state_dict().items())


@pytest.mark.parametrize(("modules", "pooling", "config", "sentence"), [
    (("Transformer", "Normalize", "Pooling"), "mean", {}, "not a Transformer and a Pooling"),
    (STACK, "mean", {"similarity_fn_name": "manhattan"}, "its similarity is 'manhattan'"),
])  # fmt: skip
def test_models_that_embed_otherwise_are_refused(
    tmp_path: Path, modules: tuple[str, ...], pooling: str, config: dict[str, str], sentence: str
) -> None:
    folder = tiny_embedder(tmp_path / "base", modules, pooling, **config)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(folder, "pairs")


def test_pooling_that_leaves_prompts_out_is_refused(tmp_path: Path) -> None:
    folder = tiny_embedder(tmp_path / "base", is_new=True)
    pooling = '{"pooling_mode": "mean", "include_prompt": false}'
    (folder / "1_Pooling/config.json").write_text(pooling)
    with pytest.raises(CheckpointError, match="leaves the prompt out"):
        load_model(folder, "pairs")


def test_a_transformer_alone_is_pooled_by_the_mean(tmp_path: Path) -> None:
    from hubmerge.models.config import read_config

    folder = tiny_embedder(tmp_path / "base", ("Transformer", "Pooling"))
    pooled = load_embedder(folder, read_config(folder / "config.json"))
    (folder / "modules.json").unlink()
    plain = load_embedder(folder, read_config(folder / "config.json"))
    tokens = torch.tensor([[2, 5, 6, 3]])
    ours, theirs = (m.encoder(tokens, torch.ones_like(tokens)) for m in (pooled, plain))
    assert torch.equal(ours, theirs)
    assert (pooled.has_modules, plain.has_modules) == (True, False)
