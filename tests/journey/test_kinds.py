"""Adapters, texts, choices and trained heads along the whole road: train, load, merge, evaluate."""

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

from hubmerge.manifest import NAME, parse_manifest
from tests.journey.conftest import TRAIN, Command, World
from tests.models.worlds import tiny_bert, tiny_t5

LORA = ("--tune", "lora", "--rank", "4", "--lr", "2e-3")
FEW = (
    "--steps",
    "4",
    "--push-every",
    "2",
    "--batch",
    "8",
    "--lr",
    "1e-2",
    "--schedule",
    "constant",
)


@pytest.fixture(scope="module")
def lora(world: World) -> str:
    """A LoRA expert for mini-hebrew, from the base of the world's other experts."""
    from tests.journey.conftest import command

    words = [word for word in TRAIN if word != "5e-4"]
    words.remove("--lr")
    said = command("train", *words, *LORA, "--task", "mini-hebrew", "--to", "demo/lora")
    assert said.code == 0, said.err
    return "demo/lora"


def fetched(world: World, repo: str, revision: str, into: Path) -> Path:
    return Path(
        snapshot_download(
            repo, revision=revision, endpoint=world.server.url, token=False, local_dir=into
        )
    )


def test_an_adapters_revision_is_plain_peft(
    world: World, hubmerge: Command, lora: str, tmp_path: Path
) -> None:
    folder = fetched(world, lora, "step8", tmp_path / "lora")
    base = fetched(world, "hubmerge/tiny-clip", "main", tmp_path / "base")
    assert {p.name for p in folder.iterdir() if p.is_file()} >= {
        "adapter_config.json", "adapter_model.safetensors", NAME, "README.md", "curve.png",
        "curve.csv",
    }  # fmt: skip
    config = json.loads((folder / "adapter_config.json").read_text())
    manifest = parse_manifest((folder / NAME).read_bytes(), "step8")
    assert config["base_model_name_or_path"] == "hubmerge/tiny-clip"
    assert config["revision"] == manifest.base.sha
    assert (manifest.layout, manifest.training["tune"]) == ("peft", "lora")
    alone = open_clip.create_model(f"local-dir:{base}")
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    before = alone.encode_image(images).detach()
    adapted = PeftModel.from_pretrained(alone, str(folder)).eval()
    assert not torch.equal(adapted.encode_image(images), before)


def test_adapters_and_whole_experts_merge(
    world: World, hubmerge: Command, lora: str, tmp_path: Path
) -> None:
    words = ("merge", "demo/mnist@step8", f"{lora}@step8", "--method", "task_arithmetic")
    said = hubmerge(*words, "--out", tmp_path / "mixed", "--json")
    assert said.code == 0, said.err
    assert any("Adapters" in note for note in said.data["notes"])
    assert "Adapters" in (tmp_path / "mixed" / "README.md").read_text()
    scores = hubmerge("eval", tmp_path / "mixed", f"{lora}@step8", "--tasks", "mini-hebrew",
                      "--json")  # fmt: skip
    assert scores.code == 0, scores.err
    assert all(0.2 < score["value"] < 1 for score in scores.data)


def test_a_merge_of_one_adapter_is_the_adapted_model(
    hubmerge: Command, lora: str, tmp_path: Path
) -> None:
    out = tmp_path / "one"
    words = ("merge", f"{lora}@step8", "--method", "task_arithmetic", "--out", out)
    assert hubmerge(*words).code == 0
    scores = hubmerge("eval", out, f"{lora}@step8", "--tasks", "mini-hebrew", "--json").data
    assert scores[0]["value"] == pytest.approx(scores[1]["value"], abs=0.002)


def rows(path: Path, words: dict[str, str]) -> Path:
    lines = [f"the {thing} {number} is {word},{word}" for word, thing in words.items()
             for number in range(20)]  # fmt: skip
    path.write_text("review,stars\n" + "\n".join(lines) + "\n")
    return path


def test_texts_with_trained_heads(world: World, hubmerge: Command, tmp_path: Path) -> None:
    """Two tasks, one base: their encoders merge, and the merge has both heads."""
    tiny_bert(tmp_path / "base")
    tasks = []
    for name, words in (
        ("films", {"good": "film", "bad": "cat"}),
        ("pets", {"a": "dog", "b": "cat"}),
    ):
        rows(tmp_path / f"{name}.csv", words)
        task = tmp_path / f"{name}.yaml"
        task.write_text(
            f"name: {name}\nkind: text\nhead: trained\nmax_tokens: 16\n"
            f"data: {{path: {name}.csv, text: review, label: stars}}\n"
            "splits: {test: {of: train, fraction: 0.25}}\n"
        )
        tasks.append(str(task))
        words_ = ("train", "--base", tmp_path / "base", "--task", task, "--to", f"texts/{name}")
        said = hubmerge(*words_, *FEW)
        assert said.code == 0, said.err
    step = fetched(world, "texts/films", "step4", tmp_path / "step")
    assert load_file(step / "head-films.safetensors")["weight"].shape[0] == 2
    assert "head-films.safetensors" in (step / "README.md").read_text().replace("\\_", "_")
    AutoModel.from_pretrained(step)
    experts = ("texts/films@step4", "texts/pets@step4")
    out = tmp_path / "merged"
    assert hubmerge("merge", *experts, "--out", out).code == 0
    said = hubmerge("eval", out, "--tasks", ",".join(tasks), "--json")
    assert said.code == 0, said.err
    assert {score["count"] for score in said.data} == {10}
    missing = hubmerge("eval", "texts/films@step4", "--tasks", tasks[1])
    assert missing.code == 2
    assert "no head for task pets" in missing.err


def test_two_heads_of_one_task_are_refused(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "base")
    rows(tmp_path / "films.csv", {"good": "film", "bad": "cat"})
    (tmp_path / "films.yaml").write_text(
        "name: films\nkind: text\nhead: trained\n"
        "data: {path: films.csv, text: review, label: stars}\n"
        "splits: {test: {of: train, fraction: 0.25}}\n"
    )
    for seed in (0, 1):
        said = hubmerge(
            "train", "--base", tmp_path / "base", "--task", tmp_path / "films.yaml", *FEW,
            "--to", f"heads/s{seed}", "--seed", seed,
        )  # fmt: skip
        assert said.code == 0, said.err
    said = hubmerge("merge", "heads/s0@step4", "heads/s1@step4", "--out", tmp_path / "m")
    assert said.code == 1
    assert "films" in said.err
    assert not (tmp_path / "m").exists()


def test_own_rows_by_options_alone(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "base")
    data = rows(tmp_path / "reviews.csv", {"good": "film", "bad": "cat"})
    columns = ("--columns", "text=review,label=stars")
    train = ("train", "--base", tmp_path / "base", "--task", data, *columns, *FEW)
    said = hubmerge(*train, *LORA[:2], "--to", "texts/reviews", "--json")
    assert said.code == 0, said.err
    assert len(said.data["commits"]) == 2
    said = hubmerge("eval", "texts/reviews@step4", "--tasks", data, *columns, "--json")
    assert said.code == 0, said.err


def test_choices_ranked_by_a_t5(world: World, hubmerge: Command, tmp_path: Path) -> None:
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
        said = hubmerge(*words, "--tune", tune, "--to", f"t5/{tune}")
        assert said.code == 0, said.err
        assert "prompts of sums are longer" not in said.err
    merged = tmp_path / "merged"
    assert hubmerge("merge", "t5/full@step4", "t5/lora@step4", "--out", merged).code == 0
    said = hubmerge("eval", merged, "--tasks", tmp_path / "sums.yaml", "--json")
    assert said.code == 0, said.err
    (tmp_path / "sums.yaml").write_text(
        (tmp_path / "sums.yaml").read_text().replace("max_tokens: 40", "max_tokens: 1")
    )
    said = hubmerge("train", "--base", tmp_path / "base", "--task", tmp_path / "sums.yaml", *FEW,
                    "--to", "t5/cut")  # fmt: skip
    assert said.code == 1
    assert "would be cut" in said.err
    assert not HfApi(endpoint=world.server.url).repo_exists("t5/cut")


def test_early_stopping_ends_in_a_marked_step(hubmerge: Command) -> None:
    words = [word for word in TRAIN if word not in ("--schedule", "constant", "8", "2,4,8")]
    words = [word for word in words if word not in ("--steps", "--push-every")]
    train = ("train", *words, "--steps", "64", "--push-every", "2^k", "--task", "mini-kana", "--to",
             "demo/stopped", "--early-stop", "noise", "--patience", "2", "--evaluate-every", "2",
             "--band", "3")  # fmt: skip
    said = hubmerge(*train, "--json")
    assert said.code == 0, said.err
    steps = hubmerge("steps", "demo/stopped", "--json").data
    assert steps[-1]["step"] < 64
    assert "early stop" in steps[-1]["marks"]
    again = hubmerge(*train, "--json")
    assert again.data["commits"] == said.data["commits"]


@pytest.mark.parametrize("anneal", ["independent", "branch"])
def test_other_ways_to_anneal(hubmerge: Command, tmp_path: Path, anneal: str) -> None:
    words = [
        "train",
        *(w for w in TRAIN if w not in ("--schedule", "constant")),
        "--anneal",
        anneal,
    ]
    said = hubmerge(*words, "--task", "mini-mnist", "--to", f"demo/{anneal}", "--json")
    assert said.code == 0, said.err
    assert set(said.data["commits"]) == {"step2", "step4", "step8"}
    steps = hubmerge("steps", f"demo/{anneal}", "--json").data
    assert {step["anneal"] for step in steps} == {anneal}
    merge = ("merge", f"demo/{anneal}@step8", "demo/hebrew@step8", "--out", tmp_path / "m")
    said = hubmerge(*merge)
    assert said.code == 0, said.err
    assert "annealed in different ways" in said.err


@pytest.mark.parametrize("tune", ["dora", "ia3", "prefix"])
def test_other_adapters_are_published_and_merge_or_say_why(
    world: World, hubmerge: Command, tmp_path: Path, tune: str
) -> None:
    tiny_t5(tmp_path / "base")
    (tmp_path / "echo.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {n}", "target": str(n % 3)}) + "\n" for n in range(40))
    )
    train = ("train", "--base", tmp_path / "base", "--task", tmp_path / "echo.jsonl", *FEW)
    size = () if tune == "ia3" else ("--rank", 2)
    said = hubmerge(*train, "--tune", tune, *size, "--to", f"kinds/{tune}")
    assert said.code == 0, said.err
    step = fetched(world, f"kinds/{tune}", "step4", tmp_path / "step")
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(plain, str(step))
    scores = hubmerge("eval", f"kinds/{tune}@step4", "--tasks", tmp_path / "echo.jsonl", "--json")
    assert scores.code == 0, scores.err
    assert scores.data[0]["metric"] == "token_accuracy"
    merge = hubmerge("merge", f"kinds/{tune}@step2", f"kinds/{tune}@step4", "--out", tmp_path / "m")
    if tune == "prefix":
        assert merge.code == 1
        assert "no weights to merge" in merge.err
    else:
        assert merge.code == 0, merge.err


def test_a_stream_a_tracker_and_a_part_of_the_data(hubmerge: Command, tmp_path: Path) -> None:
    words = ("train", *TRAIN, "--task", "mini-texture", "--max-examples", "64")
    said = hubmerge(*words, "--to", "demo/streamed", "--stream", "--track", "tensorboard",
                    "--out", tmp_path / "run", "--workers", "1", "--json")  # fmt: skip
    assert said.code == 0, said.err
    assert list((tmp_path / "run" / "hubmerge").rglob("*tfevents*"))
    whole = hubmerge(*words, "--to", "demo/sampled", "--json")
    assert whole.code == 0, whole.err
    assert whole.data["validation"] != said.data["validation"]
    refused = hubmerge(*words, "--to", "demo/never", "--track", "trackio")
    assert refused.code == 2
    assert "pip install trackio" in refused.err


def test_a_class_without_a_validation_example_is_told(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "base")
    data = rows(tmp_path / "reviews.csv", {"good": "film", "bad": "cat"})
    data.write_text(data.read_text() + "the dog is odd,odd\n")
    said = hubmerge("train", "--base", tmp_path / "base", "--task", data, "--columns",
                    "text=review,label=stars", *FEW, "--to", "texts/odd", "--dry-run")  # fmt: skip
    assert said.code == 0, said.err
    assert "of 3 classes of reviews are not in its validation split" in said.err
    assert "odd" in said.err


def test_a_base_that_was_changed_is_not_evaluated_with(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "base")
    data, columns = rows(tmp_path / "moved.csv", {"good": "film", "bad": "cat"}), (
        "--columns", "text=review,label=stars",
    )  # fmt: skip
    for tune in ("full", "lora"):
        words = ("train", "--base", tmp_path / "base", "--task", data, *columns, *FEW)
        assert hubmerge(*words, "--tune", tune, "--to", f"moved/{tune}").code == 0
    shutil.rmtree(tmp_path / "base")
    tiny_bert(tmp_path / "base", seed=1)
    for tune in ("full", "lora"):
        said = hubmerge("eval", f"moved/{tune}@step4", "--tasks", data, *columns)
        assert said.code == 3, said.err
        assert "other weights than" in said.err


def test_what_would_be_ignored_is_refused(hubmerge: Command) -> None:
    words = ("train", *TRAIN, "--task", "mini-mnist", "--to", "demo/never")
    for more, said in (
        (("--rank", 64), "`rank` has no effect here"),
        (("--band", 2), "`band` has no effect here"),
        (("--warmup", 0.5), "not both"),
        (("--batch", 7, "--accumulate", 2), "does not split"),
    ):
        answer = hubmerge(*words, *more)
        assert answer.code == 2
        assert said in answer.err


def test_the_recorded_command_repeats_the_run(
    world: World, hubmerge: Command, tmp_path: Path
) -> None:
    tiny_bert(tmp_path / "base")
    data = rows(tmp_path / "again.csv", {"good": "film", "bad": "cat"})
    words = ("train", "--base", tmp_path / "base", "--task", data, *FEW, "--to", "texts/again",
             "--columns", "text=review,label=stars")  # fmt: skip
    assert hubmerge(*words).code == 0
    step = fetched(world, "texts/again", "step4", tmp_path / "step")
    command = parse_manifest((step / NAME).read_bytes(), "step4").command
    said = hubmerge(*shlex.split(command)[1:], "--out", tmp_path / "anew", "--json")
    assert said.code == 0, said.err
    other = (tmp_path / "anew" / "steps" / "step4" / "model.safetensors").read_bytes()
    assert other == (step / "model.safetensors").read_bytes()
