"""Embeddings, losses, metrics and merges are those of sentence-transformers.

sentence-transformers' own `merge` needs mergekit, so averages are compared with the mean of the
tensors that it loads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModel

from hubmerge.evaluation import Examples
from hubmerge.learners.embedding import EmbeddingLearner, embedding_learner
from hubmerge.learners.retrieval import embed_documents
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method
from hubmerge.models.adapter import apply_adapter
from hubmerge.models.loading import load_model
from hubmerge.row_values import measure_rows
from hubmerge.tasks.chosen_metric import with_metric
from hubmerge.tasks.data import load_split
from hubmerge.tasks.examples import PairExample
from hubmerge.tasks.lookup import find_task
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.side_files import copy_module_files
from tests.models.builders import SENTENCES, tiny_llama
from tests.models.embedders import tiny_embedder, write_modules

library = pytest.importorskip("sentence_transformers")
CPU = torch.device("cpu")
TEXTS = [*SENTENCES, "good", "the mat"]
# nDCG, MRR, recall and accuracy as its evaluator names them.
METRICS = {
    "ndcg_at_10": "ndcg@10", "mrr_at_10": "mrr@10", "recall_at_10": "recall@10",
    "accuracy_at_1": "accuracy@1",
}  # fmt: skip
PROMPTS = {"query": "question: ", "document": "the "}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedders")


def load(folder: Path) -> Any:
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def embed(learner: EmbeddingLearner, texts: list[str]) -> Tensor:
    tokens = learner.encode_documents(texts)
    return embed_documents(learner, learner.network, tokens, 3, CPU)[0]


@pytest.mark.parametrize("is_new", [
    pytest.param(False, id="v2", marks=pytest.mark.slow), pytest.param(True, id="v6"),
])  # fmt: skip
@pytest.mark.parametrize("pooling", [
    "mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", "cls+mean",
])  # fmt: skip
def test_embeddings_are_equal(tmp_path: Path, pooling: str, is_new: bool) -> None:
    modules = ("Transformer", "Pooling", "Normalize")
    folder = tiny_embedder(tmp_path / "base", modules, pooling, is_new=is_new)
    learner = embedding_learner(load_model(folder, "pairs"), 512)
    expected = load(folder).encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(embed(learner, TEXTS), expected, atol=1e-6, rtol=1e-5)


def test_dense_modules_and_prompts_are_equal(root: Path) -> None:
    folder = tiny_embedder(root / "prompts", prompts=PROMPTS)
    learner, model = embedding_learner(load_model(folder, "pairs"), 512), load(folder)
    assert learner.max_tokens == model.max_seq_length
    documents = model.encode_document(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(embed(learner, TEXTS), documents, atol=1e-6, rtol=1e-5)
    queries = model.encode_query(TEXTS, convert_to_tensor=True)
    rows = [learner.for_evaluation(PairExample(text, ""))["input_ids"] for text in TEXTS]
    ours, _ = embed_documents(learner, learner.network, rows, 3, CPU)
    torch.testing.assert_close(ours, queries, atol=1e-6, rtol=1e-5)


def test_a_decoder_is_pooled_by_its_last_token(root: Path) -> None:
    tiny_llama(root / "decoder")
    write_modules(root / "decoder", ("Transformer", "Pooling", "Normalize"), "lasttoken")
    learner = embedding_learner(load_model(root / "decoder", "pairs"), 512)
    model = load(root / "decoder")
    model.tokenizer.pad_token = model.tokenizer.eos_token
    expected = model.encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(embed(learner, TEXTS), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("negatives", [False, True])
def test_the_loss_is_equal_on_batches_without_duplicates(root: Path, negatives: bool) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    folder = tiny_embedder(root / f"loss-{negatives}", seed=3)
    learner, model = embedding_learner(load_model(folder, "pairs"), 512), load(folder)
    texts = [f"{a} {b}" for a in ("good", "bad", "the") for b in ("films", "cat", "dog")]
    pairs = [PairExample(*texts[n : n + 2], texts[n + 2] if negatives else None) for n in (0, 3, 6)]
    batch = learner.collate([learner.for_training(pair, 0) for pair in pairs])
    ours = learner.loss(learner.network, batch) / learner.count_terms(batch)
    columns = [texts[column::3] for column in range(3 if negatives else 2)]
    features = [model.preprocess(column) for column in columns]
    theirs = MultipleNegativesRankingLoss(model)(features, torch.zeros(3))
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    gradients = [p.grad for p in learner.network.parameters() if p.grad is not None]
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(expected) > 10
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def write_task(folder: Path) -> Path:
    """Queries of some documents of a corpus."""
    words = ["good", "bad", "films", "cat", "mat", "dog", "question", "answer", "first", "two"]
    corpus = [{"_id": f"{n:03}", "text": f"{words[n % 10]} {words[n // 10]}"} for n in range(60)]
    rows = [
        {"q": corpus[n]["text"], "ids": [f"{n * k % 60:03}" for k in (1, 7, 11)]}
        for n in range(1, 20)
    ]
    for name, listed in (("corpus", corpus), ("rows", rows)):
        text = "".join(json.dumps(row) + "\n" for row in listed)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "search.yaml").write_text(
        "name: search\nkind: pairs\nanchor: '{{ q }}'\nrelevant: ids\ncorpus: {}\n"
        "data: {path: ., files: {train: rows.jsonl, test: rows.jsonl, corpus: corpus.jsonl}}\n"
    )
    return folder / "search.yaml"


def test_metrics_are_those_of_its_evaluator(root: Path) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    folder = tiny_embedder(root / "evaluated", prompts=PROMPTS, seed=2)
    split = load_split(find_task(str(write_task(root))), "test")
    documents, rows = split.documents, range(len(split))
    examples = [split.example(row) for row in rows]
    expected = InformationRetrievalEvaluator(
        {str(row): example.anchor for row, example in enumerate(examples)},  # type: ignore[union-attr]
        {f"{n:03}": text for n, text in enumerate(documents.texts)},
        {str(row): {f"{n:03}" for n in documents.relevant[row]} for row in rows},
    )(load(folder))
    learner = embedding_learner(load_model(folder, "pairs"), 512)
    for metric, name in METRICS.items():
        measured = with_metric(split.task, metric)
        prepared = Examples(learner.for_evaluation, load_split(measured, "test"))
        mean = measure_rows(learner, learner.network, prepared, rows, CPU).mean
        assert mean == pytest.approx(expected[f"cosine_{name}"], abs=1e-6)
        assert mean > 0


def test_an_average_is_the_mean_of_what_it_loads(root: Path) -> None:
    folders = [tiny_embedder(root / f"mean{n}", seed=n, is_new=n == 1) for n in range(3)]
    averaging = method("average")
    experts = tuple(Expert(open_checkpoint(f), f.name) for f in folders[1:])
    plan = MergePlan(open_checkpoint(folders[0]), experts, averaging, averaging.params())
    merge(plan, root / "average")
    merged, first, second = (load(f).state_dict() for f in (root / "average", *folders[1:]))
    assert any("linear.weight" in name for name in merged)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, atol=1e-6, rtol=0)


def test_an_adapter_is_the_same_in_both(root: Path) -> None:
    base = tiny_embedder(root / "adapted", seed=5)
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = get_peft_model(AutoModel.from_pretrained(base), config)
    adapted.save_pretrained(root / "adapter")
    copy_module_files(base, root / "adapter")
    learner = embedding_learner(
        apply_adapter(load_model(base, "pairs"), root / "adapter").model,
        512,  # type: ignore[arg-type]
    )
    expected = load(root / "adapter").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(embed(learner, TEXTS), expected, atol=1e-5, rtol=1e-4)
    plain = load(base).encode(TEXTS, convert_to_tensor=True)
    assert (plain - expected).abs().max() > 1e-3
