"""Embedding models that are trained, chosen by nDCG and merged, and what loads them then."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

from hubmerge.lock_file import parse_lock
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from tests.end_to_end.conftest import Command, CommandResult, LocalHub, run_hubmerge
from tests.models.builders import SENTENCES
from tests.models.embedders import OLD, tiny_embedder, write_json

TRAIN = (
    "--steps", "16", "--push-every", "4,16", "--batch", "16", "--lr", "3e-3",
    "--schedule", "constant", "--warmup-steps", "0",
)  # fmt: skip
TASKS = ("faq", "manual")
WORDS = sorted({word.strip(",.?:") for text in SENTENCES for word in text.lower().split()})


def write_task(root: Path, name: str, seed: int, rows: int = 96, **fields: Any) -> Path:
    """Two words, and the two words that stand for them in this task."""
    random_order = random.Random(seed)
    meaning = dict(zip(WORDS, random_order.sample(WORDS, len(WORDS)), strict=True))
    lines = []
    for _ in range(rows):
        words = random_order.sample(WORDS, 2)
        answer, wrong = " ".join(map(meaning.__getitem__, words)), " ".join(reversed(words))
        lines.append({"anchor": " ".join(words), "positive": answer, "negative": wrong})
    (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    spec = {
        "name": name, "kind": "pairs", "data": {"path": f"{name}.jsonl"},
        "splits": {
            "validation": {"of": "train", "count": 20},
            "test": {"of": "train", "count": 20, "seed": 1},
        },
        "anchor": "{{ anchor }}", "positive": "{{ positive }}", **fields,
    }  # fmt: skip
    (root / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    return root / f"{name}.yaml"


def train(base: Path | str, task: Path, *options: object) -> CommandResult:
    return run_hubmerge("train", "--base", base, "--task", task, *TRAIN, *options)


@pytest.fixture(scope="module")
def world(local_hub: LocalHub, api: HfApi, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks; the base embed/base and the experts embed/TASK are on the Hub."""
    root = tmp_path_factory.mktemp("embed")
    tiny_embedder(root / "base")
    api.create_repo("embed/base")
    api.upload_folder(repo_id="embed/base", folder_path=root / "base")
    for seed, name in enumerate(TASKS):
        task = write_task(root, name, seed)
        result = train("embed/base", task, "--to", f"embed/{name}")
        assert result.code == 0, result.err
    return root


def expected_metrics(model: Path, task: Path) -> dict[str, float]:
    """What sentence-transformers measures on validation."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import (
        InformationRetrievalEvaluator,
    )

    split = load_split(find_task(str(task)), "validation")
    documents = split.documents
    pairs: list[Any] = [split.example(row) for row in range(len(split))]
    evaluator = InformationRetrievalEvaluator(
        {str(row): pair.anchor for row, pair in enumerate(pairs)},
        {f"{n:03}": text for n, text in enumerate(documents.texts)},
        {str(row): {f"{n:03}" for n in own} for row, own in enumerate(documents.relevant)},
    )
    loaded = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    assert [type(module).__name__ for module in loaded] == [
        "Transformer", "Pooling", "Dense", "Normalize",
    ]  # fmt: skip
    return dict(evaluator(loaded))


def test_the_merge_that_was_chosen_is_what_sentence_transformers_loads(
    hubmerge: Command, world: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    repos = [f"embed/{name}" for name in TASKS]
    words = ("select", *repos, "--target", "task_arithmetic", "--budget", "8")
    result = hubmerge(*words, "--lock", tmp_path / "chosen.lock")
    assert result.code in (0, 4), result.err
    lock = parse_lock((tmp_path / "chosen.lock").read_bytes(), "chosen.lock")
    assert [task.metric for task in lock.tasks] == ["ndcg_at_10"] * 2
    words = ("merge", "--lock", tmp_path / "chosen.lock", "--locked", "--out", tmp_path / "merged")
    result = hubmerge(*words)
    assert result.code == 0, result.err
    scores = hubmerge("eval", tmp_path / "merged", "--split", "validation", "--json").data
    measured = {score["task"]: score["value"] for score in scores}
    assert measured == pytest.approx(dict(lock.pick().tasks))
    for score, name in zip(scores, TASKS, strict=True):
        expected = expected_metrics(tmp_path / "merged", world / f"{name}.yaml")
        assert score["value"] == pytest.approx(expected["cosine_ndcg@10"], abs=1e-6)
    card = (tmp_path / "merged/README.md").read_text()
    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity\n" in card
    assert '`SentenceTransformer("REPO", revision="TAG")`' in card


def test_training_finds_what_belongs_together(hubmerge: Command, world: Path) -> None:
    result = hubmerge("eval", "embed/faq@step16", "embed/base", "--tasks", world / "faq.yaml",
                      "--split", "train", "--json")  # fmt: skip
    trained, base = (score["value"] for score in result.data)
    assert trained > base + 0.05, (trained, base)
    assert {score["metric"] for score in result.data} == {"ndcg_at_10"}


@pytest.mark.slow
def test_an_adapter_of_a_transformer_alone_is_merged_with_modules(
    hubmerge: Command, world: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(world / "base", tmp_path / "base"))
    shutil.rmtree(base / "2_Dense")
    (base / "modules.json").unlink()
    lora = ("--tune", "lora", "--rank", "2", "--push-every", "16", "--to", "embed/lora")
    result = train(base, world / "faq.yaml", *lora)
    assert result.code == 0, result.err
    words = ("merge", "embed/lora@step16", "--method", "task_arithmetic", "--base", base)
    result = hubmerge(*words, "--out", tmp_path / "merged")
    assert result.code == 0, result.err
    listed = json.loads((tmp_path / "merged/modules.json").read_text())
    assert [entry["type"].rpartition(".")[2] for entry in listed] == ["Transformer", "Pooling"]
    for model in (tmp_path / "merged", "embed/lora@step16"):
        [score] = hubmerge("eval", model, "--json").data
        assert score["metric"] == "ndcg_at_10"


@pytest.mark.parametrize(("fields", "options", "sentence"), [
    ({}, ("--batch", "4", "--accumulate", "4"), "would be one pair"),
    ({"positive": "the same"}, (), "have one positive"),
    ({"positive": "{{ empty }}"}, (), "no column 'empty'"),
    ({}, ("--tune", "prefix"), "Prefix tuning"),
    ({}, ("--pack",), "--pack is for tasks of `kind: target`"),
])  # fmt: skip
def test_pairs_that_teach_nothing_are_refused(
    world: Path, tmp_path: Path, fields: dict[str, str], options: tuple[str, ...], sentence: str
) -> None:
    task = write_task(tmp_path, "wrong", 0, 60, **fields)
    result = train(world / "base", task, *options, "--to", "embed/wrong")
    assert result.code != 0
    assert sentence in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_a_model_with_code_of_its_own_is_refused(world: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(world / "base", tmp_path / "base"))
    modules = [{"path": "", "type": f"{OLD}.Transformer"}, {"path": "1_Pooling", "type": "my.Pool"}]
    write_json(base / "modules.json", modules)
    result = train(base, world / "faq.yaml", "--to", "embed/wrong")
    text = " ".join(result.err.split())
    assert "has the module Pool, which runs code of its own. Use a model whose" in text
