"""Adapters, texts, choices and trained heads: train, load, merge and evaluate them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForSeq2SeqLM

from hubmerge.manifest import MANIFEST_JSON, parse_manifest
from tests.end_to_end.conftest import TRAIN, Command, LocalHub, run_hubmerge
from tests.models.builders import tiny_bert, tiny_t5

LORA = ("--tune", "lora", "--rank", "4", "--lr", "2e-3")
FEW = (
    "--steps", "4", "--push-every", "4", "--batch", "8", "--lr", "1e-2", "--schedule", "constant",
)  # fmt: skip
PUSH_TWICE = ("--push-every", "2")


@pytest.fixture(scope="module")
def lora(local_hub: LocalHub) -> str:
    """A LoRA expert for mini-hebrew, on the same base as the experts of `local_hub`."""
    words = [word for word in TRAIN if word != "5e-4"]
    words.remove("--lr")
    result = run_hubmerge("train", *words, *LORA, "--task", "mini-hebrew", "--to", "demo/lora")
    assert result.code == 0, result.err
    return "demo/lora"


def download(local_hub: LocalHub, repo: str, revision: str, into: Path) -> Path:
    """Download a revision with the official client; returns its folder."""
    return Path(
        snapshot_download(
            repo, revision=revision, endpoint=local_hub.server.url, token=False, local_dir=into
        )
    )


def test_a_published_adapter_loads_in_plain_peft(
    local_hub: LocalHub, hubmerge: Command, lora: str, tmp_path: Path
) -> None:
    folder = download(local_hub, lora, "step8", tmp_path / "lora")
    base = download(local_hub, "hubmerge/tiny-clip", "main", tmp_path / "base")
    assert {path.name for path in folder.iterdir() if path.is_file()} >= {
        "adapter_config.json", "adapter_model.safetensors", MANIFEST_JSON, "README.md", "curve.png",
        "curve.csv",
    }  # fmt: skip
    config = json.loads((folder / "adapter_config.json").read_text())
    manifest = parse_manifest((folder / MANIFEST_JSON).read_bytes(), "step8")
    assert config["base_model_name_or_path"] == "hubmerge/tiny-clip"
    assert config["revision"] == manifest.base.sha
    assert (manifest.layout, manifest.training["tune"]) == ("peft", "lora")
    model = open_clip.create_model(f"local-dir:{base}")
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    before = model.encode_image(images).detach()
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    assert not torch.equal(adapted.encode_image(images), before)


def test_adapters_merge_with_full_experts(
    local_hub: LocalHub, hubmerge: Command, lora: str, tmp_path: Path
) -> None:
    words = ("merge", "demo/mnist@step8", f"{lora}@step8", "--method", "task_arithmetic")
    result = hubmerge(*words, "--out", tmp_path / "mixed", "--json")
    assert result.code == 0, result.err
    assert any("Adapters" in note for note in result.data["notes"])
    assert "Adapters" in (tmp_path / "mixed" / "README.md").read_text()
    scores = hubmerge("eval", tmp_path / "mixed", f"{lora}@step8", "--tasks", "mini-hebrew",
                      "--split", "validation", "--json")  # fmt: skip
    assert scores.code == 0, scores.err
    assert all(0.2 < score["value"] < 1 for score in scores.data)


def test_a_merge_of_one_adapter_is_the_adapted_model(
    hubmerge: Command, lora: str, tmp_path: Path
) -> None:
    out = tmp_path / "one"
    words = ("merge", f"{lora}@step8", "--method", "task_arithmetic", "--out", out)
    assert hubmerge(*words).code == 0
    words = ("eval", out, f"{lora}@step8", "--tasks", "mini-hebrew", "--split", "validation")
    scores = hubmerge(*words, "--json").data
    assert scores[0]["value"] == pytest.approx(scores[1]["value"], abs=0.002)


def write_reviews(path: Path, subjects: dict[str, str]) -> Path:
    """Write a CSV file of 20 reviews for each label; the subjects are given by label."""
    lines = [
        f"the {subject} {number} is {label},{label}"
        for label, subject in subjects.items()
        for number in range(20)
    ]
    path.write_text("review,stars\n" + "\n".join(lines) + "\n")
    return path


def test_texts_with_trained_heads(local_hub: LocalHub, hubmerge: Command, tmp_path: Path) -> None:
    """The encoders of two tasks merge, and the merge has both heads."""
    tiny_bert(tmp_path / "base")
    tasks = []
    for name, subjects in (
        ("films", {"good": "film", "bad": "cat"}),
        ("pets", {"a": "dog", "b": "cat"}),
    ):
        write_reviews(tmp_path / f"{name}.csv", subjects)
        task = tmp_path / f"{name}.yaml"
        task.write_text(
            f"name: {name}\nkind: text\nhead: trained\nmax_tokens: 16\n"
            f"data: {{path: {name}.csv, text: review, label: stars}}\n"
            "splits: {test: {of: train, fraction: 0.25}}\n"
        )
        tasks.append(str(task))
        train = ("train", "--base", tmp_path / "base", "--task", task, "--to", f"texts/{name}")
        result = hubmerge(*train, *FEW)
        assert result.code == 0, result.err
    step = download(local_hub, "texts/films", "step4", tmp_path / "step")
    assert load_file(step / "head-films.safetensors")["weight"].shape[0] == 2
    assert "head-films.safetensors" in (step / "README.md").read_text().replace("\\_", "_")
    AutoModel.from_pretrained(step)
    experts = ("texts/films@step4", "texts/pets@step4")
    out = tmp_path / "merged"
    assert hubmerge("merge", *experts, "--out", out).code == 0
    result = hubmerge("eval", out, "--tasks", ",".join(tasks), "--json")
    assert result.code == 0, result.err
    assert {score["count"] for score in result.data} == {10}
    missing = hubmerge("eval", "texts/films@step4", "--tasks", tasks[1])
    assert missing.code == 2
    assert "no trained head for task pets" in missing.err


@pytest.mark.slow
def test_two_heads_of_one_task_are_refused(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "base")
    write_reviews(tmp_path / "films.csv", {"good": "film", "bad": "cat"})
    (tmp_path / "films.yaml").write_text(
        "name: films\nkind: text\nhead: trained\n"
        "data: {path: films.csv, text: review, label: stars}\n"
        "splits: {test: {of: train, fraction: 0.25}}\n"
    )
    for seed in (0, 1):
        result = hubmerge(
            "train", "--base", tmp_path / "base", "--task", tmp_path / "films.yaml", *FEW,
            "--to", f"heads/s{seed}", "--seed", seed,
        )  # fmt: skip
        assert result.code == 0, result.err
    result = hubmerge("merge", "heads/s0@step4", "heads/s1@step4", "--out", tmp_path / "m")
    assert result.code == 1
    assert "films" in result.err
    assert not (tmp_path / "m").exists()


def test_own_rows_need_only_options(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "base")
    data = write_reviews(tmp_path / "reviews.csv", {"good": "film", "bad": "cat"})
    columns = ("--columns", "text=review,label=stars")
    train = ("train", "--base", tmp_path / "base", "--task", data, *columns, *FEW, *PUSH_TWICE)
    result = hubmerge(*train, *LORA[:2], "--to", "texts/reviews", "--json")
    assert result.code == 0, result.err
    assert len(result.data["commits"]) == 2
    result = hubmerge("eval", "texts/reviews@step4", "--tasks", data, *columns, "--json")
    assert result.code == 0, result.err


@pytest.mark.slow
def test_choices_ranked_by_a_t5(local_hub: LocalHub, hubmerge: Command, tmp_path: Path) -> None:
    tiny_t5(tmp_path / "base")
    lines = [{"q": f"is {n} even?", "label": n % 2} for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "sums.yaml").write_text(
        "name: sums\nkind: rank\ndata: {path: sums.jsonl}\nmax_tokens: 40\n"
        'splits: {test: {of: train, fraction: 0.25}}\nprompt: "question: {{ q }}"\n'
        'choices: ["Yes", "No"]\nanswer: label\n'
    )
    for tune in ("full", "lora"):
        words = ("train", "--base", tmp_path / "base", "--task", tmp_path / "sums.yaml", *FEW)
        result = hubmerge(*words, "--tune", tune, "--to", f"t5/{tune}")
        assert result.code == 0, result.err
        assert "are truncated" not in result.err
    merged = tmp_path / "merged"
    assert hubmerge("merge", "t5/full@step4", "t5/lora@step4", "--out", merged).code == 0
    result = hubmerge("eval", merged, "--tasks", tmp_path / "sums.yaml", "--json")
    assert result.code == 0, result.err
    (tmp_path / "sums.yaml").write_text(
        (tmp_path / "sums.yaml").read_text().replace("max_tokens: 40", "max_tokens: 1")
    )
    result = hubmerge("train", "--base", tmp_path / "base", "--task", tmp_path / "sums.yaml", *FEW,
                      "--to", "t5/cut")  # fmt: skip
    assert result.code == 1
    assert "the limit is 1" in result.err
    assert not HfApi(endpoint=local_hub.server.url).repo_exists("t5/cut")


@pytest.mark.slow
def test_early_stopping_marks_the_last_step(hubmerge: Command) -> None:
    words = [word for word in TRAIN if word not in ("--schedule", "constant", "8", "2,4,8")]
    words = [word for word in words if word not in ("--steps", "--push-every")]
    train = ("train", *words, "--steps", "64", "--push-every", "2^k", "--task", "mini-kana", "--to",
             "demo/stopped", "--early-stop", "noise", "--patience", "2", "--evaluate-every", "2",
             "--band", "3")  # fmt: skip
    result = hubmerge(*train, "--json")
    assert result.code == 0, result.err
    steps = hubmerge("steps", "demo/stopped", "--json").data
    assert steps[-1]["step"] < 64
    assert "early stop" in steps[-1]["marks"]
    again = hubmerge(*train, "--json")
    assert again.data["commits"] == result.data["commits"]


@pytest.mark.parametrize("anneal", ["independent", "branch"])
@pytest.mark.slow
def test_other_annealing_modes(hubmerge: Command, tmp_path: Path, anneal: str) -> None:
    words = [
        "train",
        *(w for w in TRAIN if w not in ("--schedule", "constant")),
        "--anneal",
        anneal,
    ]
    result = hubmerge(*words, "--task", "mini-mnist", "--to", f"demo/{anneal}", "--json")
    assert result.code == 0, result.err
    assert set(result.data["commits"]) == {"step2", "step4", "step8"}
    steps = hubmerge("steps", f"demo/{anneal}", "--json").data
    assert {step["anneal"] for step in steps} == {anneal}
    merge = ("merge", f"demo/{anneal}@step8", "demo/hebrew@step8", "--out", tmp_path / "m")
    result = hubmerge(*merge)
    assert result.code == 0, result.err
    assert "annealed in different ways" in result.err


@pytest.mark.parametrize(
    "tune", [*(pytest.param(tune, marks=pytest.mark.slow) for tune in ("dora", "ia3")), "prefix"]
)
def test_other_adapters_are_published_and_merge_or_are_refused(
    local_hub: LocalHub, hubmerge: Command, tmp_path: Path, tune: str
) -> None:
    tiny_t5(tmp_path / "base")
    (tmp_path / "echo.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {n}", "target": str(n % 3)}) + "\n" for n in range(40))
    )
    train = ("train", "--base", tmp_path / "base", "--task", tmp_path / "echo.jsonl", *FEW)
    rank = () if tune == "ia3" else ("--rank", 2)
    result = hubmerge(*train, *PUSH_TWICE, "--tune", tune, *rank, "--to", f"kinds/{tune}")
    assert result.code == 0, result.err
    step = download(local_hub, f"kinds/{tune}", "step4", tmp_path / "step")
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(base, str(step))
    scores = hubmerge("eval", f"kinds/{tune}@step4", "--tasks", tmp_path / "echo.jsonl", "--json")
    assert scores.code == 0, scores.err
    assert scores.data[0]["metric"] == "token_accuracy"
    merge = hubmerge("merge", f"kinds/{tune}@step2", f"kinds/{tune}@step4", "--out", tmp_path / "m")
    if tune == "prefix":
        assert merge.code == 1
        assert "no weights to merge" in merge.err
    else:
        assert merge.code == 0, merge.err


@pytest.mark.slow
def test_streaming_tracking_and_sampling(hubmerge: Command, tmp_path: Path) -> None:
    words = ("train", *TRAIN, "--task", "mini-texture", "--max-examples", "64")
    streamed = hubmerge(*words, "--to", "demo/streamed", "--stream", "--track", "tensorboard",
                        "--out", tmp_path / "run", "--workers", "1", "--json")  # fmt: skip
    assert streamed.code == 0, streamed.err
    assert list((tmp_path / "run" / "hubmerge").rglob("*tfevents*"))
    sampled = hubmerge(*words, "--to", "demo/sampled", "--json")
    assert sampled.code == 0, sampled.err
    assert sampled.data["validation"] != streamed.data["validation"]
    refused = hubmerge(*words, "--to", "demo/never", "--track", "trackio")
    assert refused.code == 2
    assert "pip install trackio" in refused.err


def test_a_class_without_validation_examples_is_reported(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "base")
    data = write_reviews(tmp_path / "reviews.csv", {"good": "film", "bad": "cat"})
    data.write_text(data.read_text() + "the dog is odd,odd\n")
    result = hubmerge("train", "--base", tmp_path / "base", "--task", data, "--columns",
                      "text=review,label=stars", *FEW, "--to", "texts/odd",
                      "--dry-run")  # fmt: skip
    assert result.code == 0, result.err
    assert "of 3 classes of reviews are not in its validation split" in result.err
    assert "odd" in result.err


def test_a_changed_base_is_refused_in_evaluation(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "base")
    data = write_reviews(tmp_path / "moved.csv", {"good": "film", "bad": "cat"})
    columns = ("--columns", "text=review,label=stars")
    for tune in ("full", "lora"):
        words = ("train", "--base", tmp_path / "base", "--task", data, *columns, *FEW)
        assert hubmerge(*words, "--tune", tune, "--to", f"moved/{tune}").code == 0
    shutil.rmtree(tmp_path / "base")
    tiny_bert(tmp_path / "base", seed=1)
    for tune in ("full", "lora"):
        result = hubmerge("eval", f"moved/{tune}@step4", "--tasks", data, *columns)
        assert result.code == 3, result.err
        assert "other weights than" in result.err


def test_options_without_effect_are_refused(hubmerge: Command) -> None:
    words = ("train", *TRAIN, "--task", "mini-mnist", "--to", "demo/never")
    for options, message in (
        (("--rank", 64), "`rank` has no effect here"),
        (("--band", 2), "`band` has no effect here"),
        (("--warmup", 0.5), "not both"),
        (("--batch", 7, "--accumulate", 2), "does not split"),
    ):
        result = hubmerge(*words, *options)
        assert result.code == 2
        assert message in result.err


@pytest.mark.slow
def test_the_recorded_command_repeats_the_run(
    local_hub: LocalHub, hubmerge: Command, tmp_path: Path
) -> None:
    tiny_bert(tmp_path / "base")
    data = write_reviews(tmp_path / "again.csv", {"good": "film", "bad": "cat"})
    words = ("train", "--base", tmp_path / "base", "--task", data, *FEW, "--to", "texts/again",
             "--columns", "text=review,label=stars")  # fmt: skip
    assert hubmerge(*words).code == 0
    step = download(local_hub, "texts/again", "step4", tmp_path / "step")
    command = parse_manifest((step / MANIFEST_JSON).read_bytes(), "step4").command
    result = hubmerge(*shlex.split(command)[1:], "--out", tmp_path / "again", "--json")
    assert result.code == 0, result.err
    weights = (tmp_path / "again" / "steps" / "step4" / "model.safetensors").read_bytes()
    assert weights == (step / "model.safetensors").read_bytes()
