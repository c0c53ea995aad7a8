"""Classifiers with heads of their own: the body is merged, and each head gives its own logits."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from typer.testing import Result

from hubmerge.errors import CheckpointError
from hubmerge.hub.client import Hub
from hubmerge.models.class_model import class_order, load_class_model
from hubmerge.server import lease
from tests.command_line import run_command as run

pytestmark = pytest.mark.usefixtures("running_hub")

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
TEXT = SMALL | {"vocab_size": 64, "max_position_embeddings": 32}
IMAGE = SMALL | {"image_size": 32, "patch_size": 16}
CLASSES = {"cola": ["no", "yes"], "news": ["arts", "law", "sport"]}


def labels(names: list[str]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def save_expert(model: PreTrainedModel, base: PreTrainedModel, folder: Path) -> None:
    """A model whose body is the base's with noise, under a new head."""
    model.base_model.load_state_dict(base.base_model.state_dict(), strict=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model, and a classifier made from it for each of CLASSES."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    base = transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))
    base.save_pretrained(folder / "base")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(59))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    for name, classes in CLASSES.items():
        config = transformers.BertConfig(**TEXT, **labels(classes))
        save_expert(transformers.BertForSequenceClassification(config), base, folder / name)
        rows = [f"w{n} w{n * 7 % 50},{classes[n % len(classes)]}" for n in range(30)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
        task = {
            "name": name, "kind": "text", "head": "trained", "classes": classes[::-1],
            "data": {"path": f"{name}.csv"},
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    for name in ("base", *CLASSES):
        tokenizer.save_pretrained(folder / name)
    return folder


def merge(folder: Path, out: Path, *options: str) -> Result:
    experts = [folder / name for name in CLASSES]
    return run("merge", *experts, "--base", folder / "base", "--method", "average",
               "--out", out, *options)  # fmt: skip


def test_the_option_is_named(bert: Path, tmp_path: Path) -> None:
    refused = merge(bert, tmp_path / "out")
    assert refused.exit_code == 1
    assert "--heads keep" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_each_head_is_kept_and_gives_its_own_logits(bert: Path, tmp_path: Path) -> None:
    assert merge(bert, tmp_path / "out", "--heads", "keep").exit_code == 0
    models = {
        name: transformers.BertForSequenceClassification.from_pretrained(bert / name).eval()
        for name in CLASSES
    }
    states = [copy.deepcopy(model.state_dict()) for model in models.values()]
    ids = torch.arange(10)[None]
    for name, model in models.items():
        body = {
            key: (states[0][key] + states[1][key]) / 2
            for key in model.state_dict()
            if not key.startswith(("classifier", "bert.pooler"))
        }
        model.load_state_dict(model.state_dict() | body)
        kept = load_class_model(tmp_path / "out", tmp_path / "out" / f"head-{name}.safetensors")
        with torch.no_grad():
            torch.testing.assert_close(kept(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    result = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out")
    base = load_file(bert / "base" / "model.safetensors")
    assert torch.equal(result.cls.predictions.bias, base["cls.predictions.bias"])
    again = merge(bert, tmp_path / "again", "--heads", "keep")
    assert again.exit_code == 0
    for file in (tmp_path / "out").glob("head-*"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_each_task_is_evaluated_with_its_own_head(bert: Path, tmp_path: Path) -> None:
    merge(bert, tmp_path / "out", "--heads", "keep")
    for name in CLASSES:
        words = ["--tasks", bert / f"{name}.yaml", "--split", "train", "--json"]
        done = run("eval", bert / name, tmp_path / "out", *words)
        assert done.exit_code == 0, done.stderr
        assert len(json.loads(done.stdout)) == 2
        other = next(key for key in CLASSES if key != name)
        refused = run("eval", bert / other, *words)
        assert f"has a head for {len(CLASSES[other])} classes" in refused.stderr
    (tmp_path / "out" / "head-cola.safetensors").unlink()
    (tmp_path / "out" / "hubmerge.json").unlink()
    refused = run("eval", tmp_path / "out", "--tasks", bert / "cola.yaml", "--split", "train")
    assert "has no trained head for task cola, but for news" in refused.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"architectures": ["Unknown"]}', "class 'Unknown' is not known"),
        ('{"architectures": {"a": 1}}', "cannot be loaded"),
        ("{}", "is not known"),
        ("[]", "not a JSON object"),
        ('{"auto_map": {"AutoModel": "x.Y"}}', "would run code"),
        ('{"architectures": ["BertForSequenceClassification"], "hidden_size": "x"}', "cannot be"),
        ('{"architectures": ["BertForSequenceClassification"], "hidden_size": 8}', "cannot be"),
    ],
)
def test_a_kept_head_with_a_wrong_configuration(
    bert: Path, tmp_path: Path, config: str, message: str
) -> None:
    file = tmp_path / "head-cola.safetensors"
    save_file({"classifier.weight": torch.zeros(2, 32)}, file, {"config": config})
    with pytest.raises(CheckpointError, match=message):
        load_class_model(bert / "base", file)


def test_dropped_heads_leave_the_body(bert: Path, tmp_path: Path) -> None:
    assert merge(bert, tmp_path / "out", "--heads", "drop").exit_code == 0
    assert not list((tmp_path / "out").glob("head-*"))


def test_two_experts_of_one_name_are_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cola").symlink_to(bert / "cola")
    refused = run("merge", bert / "cola", tmp_path / "other" / "cola", "--base", bert / "base",
                  "--method", "average", "--heads", "keep", "--out", tmp_path / "out")  # fmt: skip
    assert refused.exit_code == 2
    assert "Two experts would have the head head-cola.safetensors" in refused.stderr


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_the_saved_head_of_an_adapter(bert: Path, tmp_path: Path, task_type: str | None) -> None:
    """The usual adapter of a classifier: its head is trained in full."""
    config = transformers.BertConfig(**TEXT, **labels(CLASSES["news"]))
    model = transformers.BertForSequenceClassification(config)
    base = transformers.BertForMaskedLM.from_pretrained(bert / "base")
    model.bert.load_state_dict(base.bert.state_dict(), strict=False)
    lora = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"],
                           task_type=task_type, init_lora_weights=False)  # fmt: skip
    adapted = peft.get_peft_model(model, lora).eval()
    adapted.save_pretrained(tmp_path / "news")
    words = ["merge", tmp_path / "news", "--base", bert / "base", "--method", "average"]
    refused = run(*words, "--out", tmp_path / "out")
    assert "--heads keep" in refused.stderr
    done = run(*words, "--out", tmp_path / "out", "--heads", "keep")
    assert done.exit_code == 0, done.stderr
    assert "has a head of its own" in done.stderr
    head = load_file(tmp_path / "out" / "head-news.safetensors")
    assert torch.equal(head["classifier.weight"], model.classifier.modules_to_save.default.weight)
    scored = run("eval", tmp_path / "out", "--tasks", bert / "news.yaml", "--split", "train")
    # The pooler of this adapter's base was random, and nobody stored it.
    assert "lacks 'bert.pooler.dense" in scored.stderr
    path = tmp_path / "news" / "adapter_config.json"
    named = json.loads(path.read_text()) | {"base_model_name_or_path": str(bert / "base")}
    path.write_text(json.dumps(named))
    alone = run("eval", tmp_path / "news", "--tasks", bert / "news.yaml", "--split", "train")
    assert "lacks 'bert.pooler.dense" in alone.stderr


def test_an_adapter_is_evaluated_with_its_own_head(bert: Path, tmp_path: Path) -> None:
    """Over a body with its pooler; its answers are those that peft gives."""
    config = transformers.BertConfig(**TEXT, **labels(CLASSES["news"]))
    torch.manual_seed(2)
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():  # else it answers the same to everything
            parameter += 0.3 * torch.randn_like(parameter)
    model.bert.save_pretrained(tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["query", "dense"], task_type="SEQ_CLS",
                           init_lora_weights=False, lora_alpha=16)  # fmt: skip
    adapted = peft.get_peft_model(model, lora).eval()
    texts = [f"w{n} w{n * 7 % 50} w{n * 3 % 41}" for n in range(60)]
    head = model.classifier.modules_to_save.default
    with torch.no_grad():
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        head.bias -= adapted(**inputs).logits.mean(0)  # so that it gives every answer
        answers = adapted(**inputs).logits.argmax(1).tolist()
    assert len(set(answers)) == 3
    adapted.save_pretrained(tmp_path / "news")
    path = tmp_path / "news" / "adapter_config.json"
    named = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    path.write_text(json.dumps(named))
    # Labels are the answers of the adapted model, so that its accuracy is 1. An adapter does not
    # name its classes: they are in the order of the task.
    classes = CLASSES["news"]
    rows = [f"{text},{classes[answer]}" for text, answer in zip(texts, answers, strict=True)]
    task = json.loads((bert / "news.yaml").read_text())
    task |= {"data": {"path": "own.csv"}, "classes": classes}
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "own.yaml").write_text(json.dumps(task))
    done = run("eval", tmp_path / "news", "--tasks", tmp_path / "own.yaml", "--split", "train",
               "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    (score,) = json.loads(done.stdout)
    assert score["value"] == 1
    assert score["count"] > 50


def test_an_adapter_is_evaluated_with_the_head_beside_it(bert: Path, tmp_path: Path) -> None:
    """With the answers of the expert it was extracted from, which changed only matrices."""
    torch.manual_seed(3)
    classes = CLASSES["news"]
    config = transformers.BertConfig(**TEXT, **labels(classes))
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.bert.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.bert.encoder.parameters():
            if parameter.ndim == 2:
                parameter += 0.3 * torch.randn_like(parameter)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert / "base")
    texts = [f"w{n} w{n * 7 % 50} w{n * 3 % 41}" for n in range(60)]
    with torch.no_grad():
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        model.classifier.bias -= model(**inputs).logits.mean(0)  # so that it gives every answer
        answers = model(**inputs).logits.argmax(1).tolist()
    assert len(set(answers)) == 3
    model.save_pretrained(tmp_path / "news")
    for folder in ("base", "news"):
        tokenizer.save_pretrained(tmp_path / folder)
    rows = [f"{text},{classes[answer]}" for text, answer in zip(texts, answers, strict=True)]
    task = json.loads((bert / "news.yaml").read_text()) | {"data": {"path": "own.csv"}}
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "news.yaml").write_text(json.dumps(task))
    for words in (
        ("extract", "--rank"),
        ("merge", "--method", "average", "--heads", "keep", "--as-lora"),
    ):
        out = tmp_path / words[0]
        made = run(
            words[0],
            tmp_path / "news",
            *words[1:],
            32,
            "--base",
            tmp_path / "base",
            *(("--method", "average") if words[0] == "merge" else ()),
            "--out",
            out,
        )
        assert made.exit_code == 0, made.stderr
        done = run("eval", out, "--tasks", tmp_path / "news.yaml", "--split", "train", "--json")
        assert done.exit_code == 0, done.stderr
        (score,) = json.loads(done.stdout)
        assert score["value"] == 1
        assert score["count"] > 50


def test_an_image_classifier_with_fewer_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**IMAGE, num_labels=10)
    base = transformers.ViTForImageClassification(config)
    base.save_pretrained(tmp_path / "base")
    classes = ["ant", "bee", "cow"]
    expert = transformers.ViTForImageClassification(
        transformers.ViTConfig(**IMAGE, **labels(classes))
    )
    save_expert(expert, base, tmp_path / "pets")
    words = ["--base", tmp_path / "base", "--method", "average", "--out", tmp_path / "out"]
    done = run("merge", tmp_path / "pets", *words, "--heads", "keep")
    assert done.exit_code == 0, done.stderr
    kept = load_class_model(tmp_path / "out", tmp_path / "out" / "head-pets.safetensors")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(kept(pixels).logits, expert.eval()(pixels).logits)
    merged = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(merged.classifier.weight, base.classifier.weight)


def test_classes_are_matched_by_name_or_in_order() -> None:
    config = transformers.BertConfig(**labels(["no", "yes"]))
    assert class_order(config, ["yes", "no"], "me") == [1, 0]
    assert class_order(config, ["bad", "good"], "me") == [0, 1]
    with pytest.raises(CheckpointError, match="2 classes, and the task has 3"):
        class_order(config, ["a", "b", "c"], "me")


def test_a_merge_with_kept_heads_is_verified_and_made_again(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lease(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        api = Hub(server.url, lambda: server.token, tmp_path / "cache", "the test Hub").api
        for name in ("base", *CLASSES):
            api.create_repo(f"me/{name}")
            api.upload_folder(repo_id=f"me/{name}", folder_path=bert / name)
        words = ["merge", "me/cola", "me/news", "--base", "me/base", "--method", "average"]
        done = run(
            *words, "--heads", "keep", "--out", tmp_path / "out", "--push", "me/merged", hub=""
        )
        assert done.exit_code == 0, done.stderr
        verified = run("verify", "me/merged", "--rebuild", hub="")
        assert verified.exit_code == 0, verified.stdout + verified.stderr
        words = ["--tasks", bert / "cola.yaml", "--split", "train", "--json"]
        scored = run("eval", "me/merged", *words, hub="")
        assert scored.exit_code == 0, scored.stderr
        assert "--heads keep" in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture
def published(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The words of a selection among the classifiers of `bert`, each of two steps on a Hub."""
    with lease(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        api = Hub(server.url, lambda: server.token, tmp_path / "cache", "the test Hub").api
        api.create_repo("me/base")
        api.upload_folder(repo_id="me/base", folder_path=bert / "base")
        for name in CLASSES:
            api.create_repo(f"me/{name}")
            for step, factor in ((1, 3.0), (2, 1.0)):
                shutil.copytree(bert / name, tmp_path / f"{name}-{step}")
                tensors = load_file(bert / name / "model.safetensors")
                tensors["classifier.weight"] *= factor
                tensors["bert.pooler.dense.weight"] *= factor
                save_file(tensors, tmp_path / f"{name}-{step}" / "model.safetensors",
                          {"format": "pt"})  # fmt: skip
                api.upload_folder(repo_id=f"me/{name}", folder_path=tmp_path / f"{name}-{step}")
                api.create_tag(f"me/{name}", tag=f"step{step}")
        tasks = ",".join(str(bert / f"{name}.yaml") for name in CLASSES)
        yield ["select", "me/cola", "me/news", "--base", "me/base", "--tasks", tasks,
               "--target", "average", "--lock", tmp_path / "lock"]  # fmt: skip


@pytest.mark.slow
def test_a_selection_measures_each_task_with_its_own_head(
    bert: Path, published: list[Any], tmp_path: Path
) -> None:
    refused = run(*published, hub="")
    assert refused.exit_code == 1
    assert "--heads keep" in refused.stderr
    assert not (tmp_path / "lock").exists()
    chosen = run(*published, "--heads", "keep", "--exhaustive", hub="")
    assert chosen.exit_code in (0, 4), chosen.stderr
    lock = json.loads((tmp_path / "lock").read_text())
    assert lock["options"]["heads"] == "keep"
    assert "--heads keep" in lock["command"]
    for policy in ("last", "uniform"):
        out = tmp_path / policy
        done = run("merge", "--lock", tmp_path / "lock", "--policy", policy, "--out", out, hub="")
        assert done.exit_code == 0, done.stderr
        pick = next(pick for pick in lock["picks"] if pick["policy"] == policy)
        for name in CLASSES:
            words = ["--tasks", bert / f"{name}.yaml", "--split", "validation", "--json"]
            scored = run("eval", out, *words, hub="")
            assert scored.exit_code == 0, scored.stderr
            (score,) = json.loads(scored.stdout)
            (measured,) = [v for task, v in pick["tasks"].items() if task.startswith(f"{name}@")]
            assert score["value"] == pytest.approx(measured, abs=1e-9)
    verified = run("verify", tmp_path / "last", "--rebuild", hub="")
    assert verified.exit_code == 0, verified.stdout + verified.stderr
