"""Mixtures of experts for texts and choices: label heads, trained heads, data-driven starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

import hubmerge as package
from hubmerge.weights.moe_config import ROUTER_WEIGHTS, read_moe_config
from tests.end_to_end.conftest import Command, LocalHub, run_hubmerge
from tests.end_to_end.moe_experts import LORA, read_folder, train_expert
from tests.end_to_end.test_kinds import write_reviews
from tests.models.builders import tiny_bert, tiny_t5

pytestmark = pytest.mark.slow

SPLITS = "splits: {test: {of: train, fraction: 0.25}}\n"
SUBJECTS = {"films": {"good": "film", "bad": "cat"}, "pets": {"big": "dog", "small": "cat"}}
SHORT = ("--train-steps", "2", "--batch", "8", "--lr", "1e-2")


@pytest.fixture(scope="module")
def folder(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks and bases; bases/bert, bases/t5 and experts are on the Hub."""
    folder = tmp_path_factory.mktemp("families")
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    for name, make in (("bert", tiny_bert), ("t5", tiny_t5)):
        make(folder / name)
        api.create_repo(f"bases/{name}")
        api.upload_folder(repo_id=f"bases/{name}", folder_path=folder / name)
    for name, subjects in SUBJECTS.items():
        write_reviews(folder / f"{name}.csv", subjects)
        for head in ("label", "trained"):
            (folder / f"{name}-{head}.yaml").write_text(
                f"name: {name}-{head}\nkind: text\nhead: {head}\nmax_tokens: 16\n"
                f"data: {{path: {name}.csv, text: review, label: stars}}\n{SPLITS}"
            )
            train_expert(
                folder / f"{name}-{head}.yaml", f"bert/{name}-{head}", *LORA, base="bases/bert"
            )
    for name in ("even", "odd"):
        lines = [{"q": f"is {n} {name}?", "label": n % 2} for n in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\nkind: rank\ndata: {{path: {name}.jsonl}}\nmax_tokens: 40\n{SPLITS}"
            'prompt: "question: {{ q }}"\nchoices: ["Yes", "No"]\nanswer: label\n'
        )
        train_expert(folder / f"{name}.yaml", f"t5/{name}", *LORA, base="bases/t5")
    return folder


def task_files(folder: Path, *names: str) -> str:
    """The value of --tasks for these tasks."""
    return ",".join(str(folder / f"{name}.yaml") for name in names)


def train_moe(
    folder: Path, out: Path, experts: tuple[str, ...], *words: object, tasks: str = ""
) -> Path:
    """Train a mixture of experts at step 4, by default on their own tasks; returns the folder."""
    tasks = tasks or task_files(folder, *(expert.partition("/")[2] for expert in experts))
    refs = [f"{expert}@step4" for expert in experts]
    short = () if "--train-steps" in words else SHORT
    result = run_hubmerge("moerge", *refs, "--tasks", tasks, *short, *words, "--out", out)
    assert result.code == 0, result.err
    return out


def evaluate(hubmerge: Command, out: Path, tasks: str) -> dict[str, float]:
    result = hubmerge("eval", out, "--tasks", tasks, "--split", "validation", "--json")
    assert result.code == 0, result.err
    return {score["task"].partition("@")[0]: score["value"] for score in result.data}


def last_accuracies(out: Path) -> dict[str, float]:
    manifest = json.loads((out / "hubmerge.json").read_text())
    accuracies: dict[str, float] = manifest["validation"][-1]["tasks"]
    return accuracies


@pytest.mark.parametrize("head", ["label", "trained"])
def test_texts(folder: Path, hubmerge: Command, tmp_path: Path, head: str) -> None:
    names = (f"films-{head}", f"pets-{head}")
    out = train_moe(folder, tmp_path / "out", (f"bert/{names[0]}", f"bert/{names[1]}"))
    accuracies = evaluate(hubmerge, out, task_files(folder, *names))
    assert accuracies == pytest.approx(last_accuracies(out))
    heads = [path.name for path in out.glob("head-*")]
    assert sorted(heads) == [f"head-{name}.safetensors" for name in names if head == "trained"]
    moe = package.load_moe(out, tasks=task_files(folder, *names).split(","), hub="local")
    (prediction,) = moe("the film 3 is good", task=names[0])
    assert prediction["label"] in ("good", "bad", "film", "cat")
    assert moe.tasks.keys() == set(names)


def test_trained_heads_are_not_changed(
    folder: Path, local_hub: LocalHub, hubmerge: Command, tmp_path: Path
) -> None:
    out = train_moe(folder, tmp_path / "out", ("bert/films-trained", "bert/pets-trained"))
    api = HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)
    for name in ("films", "pets"):
        file = f"head-{name}-trained.safetensors"
        source = api.hf_hub_download(f"bert/{name}-trained", file, revision="step4")
        assert (out / file).read_bytes() == Path(source).read_bytes()


def test_a_trained_head_without_its_expert_is_refused(folder: Path, hubmerge: Command) -> None:
    result = hubmerge(
        "moerge", "bert/films-trained@step4", "bert/films-label@step4", *SHORT,
        "--tasks", task_files(folder, "films-trained", "pets-trained"),
    )  # fmt: skip
    assert result.code == 2, result.err
    assert "No expert has the trained head of pets-trained" in result.err
    assert "leave the task out" in result.err


def test_a_start_from_prompts(folder: Path, hubmerge: Command, tmp_path: Path) -> None:
    experts = ("bert/films-label", "bert/pets-label")
    words = ("--router", "prompts", "--train-steps", "0")
    out = train_moe(folder, tmp_path / "out", experts, *words)
    router = load_file(out / ROUTER_WEIGHTS)
    assert all(torch.allclose(rows[0], -rows[1], atol=1e-5) for rows in router.values())
    assert (read_moe_config(out).router.init, read_moe_config(out).router.signed) == (
        "prompts",
        True,
    )
    other = train_moe(
        folder, tmp_path / "other", experts, "--router", "centroid", "--train-steps", "0"
    )
    assert any(
        not torch.equal(rows, router[name])
        for name, rows in load_file(other / ROUTER_WEIGHTS).items()
    )


def test_a_start_from_prompts_needs_label_heads(folder: Path, hubmerge: Command) -> None:
    result = hubmerge(
        "moerge", "bert/films-trained@step4", "bert/pets-trained@step4", *SHORT,
        "--tasks", task_files(folder, "films-trained", "pets-trained"), "--router", "prompts",
    )  # fmt: skip
    assert result.code == 2
    for name in ("films-trained", "pets-trained"):
        assert f"{name} has no class prompts" in result.err


def test_choices(folder: Path, hubmerge: Command, tmp_path: Path) -> None:
    out = train_moe(folder, tmp_path / "out", ("t5/even", "t5/odd"), "--recompute")
    tasks = task_files(folder, "even", "odd")
    assert evaluate(hubmerge, out, tasks) == pytest.approx(last_accuracies(out))
    moe = package.load_moe(out, tasks=tasks.split(","), hub="local")
    inputs = [("question: is 3 even?", ("Yes", "No")), ("question: is 4 even?", ("Yes", "No"))]
    predictions = moe(inputs, task="even")
    assert all(prediction["label"] in ("Yes", "No") for prediction in predictions)
    (single,) = moe(inputs[0], task="even")
    assert single["label"] == predictions[0]["label"]
    assert single["score"] == pytest.approx(predictions[0]["score"], abs=1e-5)


def test_tasks_of_two_families_are_refused(folder: Path, hubmerge: Command) -> None:
    result = hubmerge("moerge", "t5/even@step4", "t5/odd@step4", *SHORT,
                      "--tasks", task_files(folder, "even", "films-label"))  # fmt: skip
    assert result.code in (1, 2), result.err
    assert "does not support" in result.err
    assert "a bug in hubmerge" not in result.err


def test_experts_of_two_families_are_refused(folder: Path, hubmerge: Command) -> None:
    result = hubmerge("moerge", "t5/even@step4", "bert/films-label@step4", *SHORT,
                      "--tasks", task_files(folder, "even"))  # fmt: skip
    assert result.code == 3, result.err
    assert "base" in result.err


def test_a_repeated_run_gives_the_same_bytes(
    folder: Path,
    hubmerge: Command,
    local_hub: LocalHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = train_moe(folder, tmp_path / "first", ("t5/even", "t5/odd"))
    run = json.loads((first / "hubmerge.json").read_text())["run"]
    shutil.rmtree(local_hub.home / "moes" / run[:12])
    again = train_moe(folder, tmp_path / "again", ("t5/even", "t5/odd"))
    expected, actual = read_folder(first), read_folder(again)
    names = [name for name in expected if not name.startswith(("README", "curve"))]
    assert all(actual[name] == expected[name] for name in names)
