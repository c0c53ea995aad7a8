"""Mixtures for texts and for choices, on own rows: labels, trained heads, starts from data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

import hubmerge as package
from hubmerge.weights.moe_config import ROUTER, read_moe_config
from tests.journey.conftest import Command, World
from tests.journey.moes import LORA, ask, contents, train
from tests.journey.test_kinds import rows
from tests.models.worlds import tiny_bert, tiny_t5

SPLITS = "splits: {test: {of: train, fraction: 0.25}}\n"
WORDS = {"films": {"good": "film", "bad": "cat"}, "pets": {"big": "dog", "small": "cat"}}
SHORT = ("--train-steps", "2", "--batch", "8", "--lr", "1e-2")


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tasks and bases lie; bases/bert and bases/t5 are on the Hub."""
    folder = tmp_path_factory.mktemp("families")
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    for name, make in (("bert", tiny_bert), ("t5", tiny_t5)):
        make(folder / name)
        api.create_repo(f"bases/{name}")
        api.upload_folder(repo_id=f"bases/{name}", folder_path=folder / name)
    for name, words in WORDS.items():
        rows(folder / f"{name}.csv", words)
        for head in ("label", "trained"):
            (folder / f"{name}-{head}.yaml").write_text(
                f"name: {name}-{head}\nkind: text\nhead: {head}\nmax_tokens: 16\n"
                f"data: {{path: {name}.csv, text: review, label: stars}}\n{SPLITS}"
            )
            train(folder / f"{name}-{head}.yaml", f"bert/{name}-{head}", *LORA, base="bases/bert")
    for name in ("even", "odd"):
        lines = [{"q": f"is {n} {name}?", "label": n % 2} for n in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\nkind: rank\ndata: {{path: {name}.jsonl}}\nmax_tokens: 40\n{SPLITS}"
            'prompt: "question: {{ q }}"\nchoices: ["Yes", "No"]\nanswer: label\n'
        )
        train(folder / f"{name}.yaml", f"t5/{name}", *LORA, base="bases/t5")
    return folder


def tasks_in(folder: Path, *names: str) -> str:
    return ",".join(str(folder / f"{name}.yaml") for name in names)


def made(
    folder: Path, out: Path, experts: tuple[str, ...], *words: object, tasks: str = ""
) -> Path:
    """A mixture of these experts at step 4, at their own tasks unless others are named."""
    names = tasks or tasks_in(folder, *(expert.partition("/")[2] for expert in experts))
    labels = [f"{expert}@step4" for expert in experts]
    short = () if "--train-steps" in words else SHORT
    said = ask("moerge", *labels, "--tasks", names, *short, *words, "--out", out)
    assert said.code == 0, said.err
    return out


def measured(hubmerge: Command, out: Path, tasks: str) -> dict[str, float]:
    said = hubmerge("eval", out, "--tasks", tasks, "--split", "validation", "--json")
    assert said.code == 0, said.err
    return {score["task"].partition("@")[0]: score["value"] for score in said.data}


def last_point(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "hubmerge.json").read_text())["validation"][-1][
        "tasks"
    ]
    return found


@pytest.mark.parametrize("head", ["label", "trained"])
def test_texts(folder: Path, hubmerge: Command, tmp_path: Path, head: str) -> None:
    names = (f"films-{head}", f"pets-{head}")
    out = made(folder, tmp_path / "out", (f"bert/{names[0]}", f"bert/{names[1]}"))
    told = measured(hubmerge, out, tasks_in(folder, *names))
    assert told == pytest.approx(last_point(out))
    heads = [path.name for path in out.glob("head-*")]
    assert sorted(heads) == [f"head-{name}.safetensors" for name in names if head == "trained"]
    moe = package.load_moe(out, tasks=tasks_in(folder, *names).split(","), hub="local")
    (answer,) = moe("the film 3 is good", task=names[0])
    assert answer["label"] in ("good", "bad", "film", "cat")
    assert moe.tasks.keys() == set(names)


def test_trained_heads_stay_as_they_are(
    folder: Path, world: World, hubmerge: Command, tmp_path: Path
) -> None:
    out = made(folder, tmp_path / "out", ("bert/films-trained", "bert/pets-trained"))
    api = HfApi(endpoint=world.server.url, token=world.server.token)
    for name in ("films", "pets"):
        file = f"head-{name}-trained.safetensors"
        source = api.hf_hub_download(f"bert/{name}-trained", file, revision="step4")
        assert (out / file).read_bytes() == Path(source).read_bytes()


def test_a_trained_head_without_its_expert(folder: Path, hubmerge: Command) -> None:
    said = hubmerge(
        "moerge", "bert/films-trained@step4", "bert/films-label@step4", *SHORT,
        "--tasks", tasks_in(folder, "films-trained", "pets-trained"),
    )  # fmt: skip
    assert said.code == 2, said.err
    assert "No expert brings a head for pets-trained" in said.err
    assert "leave the task out" in said.err


def test_a_start_from_prompts(folder: Path, hubmerge: Command, tmp_path: Path) -> None:
    experts = ("bert/films-label", "bert/pets-label")
    words = ("--router", "prompts", "--train-steps", "0")
    out = made(folder, tmp_path / "out", experts, *words)
    found = load_file(out / ROUTER)
    assert all(torch.allclose(rows[0], -rows[1], atol=1e-5) for rows in found.values())
    assert (read_moe_config(out).router.init, read_moe_config(out).router.signed) == (
        "prompts",
        True,
    )
    other = made(folder, tmp_path / "other", experts, "--router", "centroid", "--train-steps", "0")
    assert any(
        not torch.equal(rows, found[name]) for name, rows in load_file(other / ROUTER).items()
    )


def test_prompts_are_for_labels(folder: Path, hubmerge: Command) -> None:
    said = hubmerge(
        "moerge", "bert/films-trained@step4", "bert/pets-trained@step4", *SHORT,
        "--tasks", tasks_in(folder, "films-trained", "pets-trained"), "--router", "prompts",
    )  # fmt: skip
    assert said.code == 2
    for name in ("films-trained", "pets-trained"):
        assert f"{name} has no class prompts" in said.err


def test_choices(folder: Path, hubmerge: Command, tmp_path: Path) -> None:
    out = made(folder, tmp_path / "out", ("t5/even", "t5/odd"), "--recompute")
    tasks = tasks_in(folder, "even", "odd")
    assert measured(hubmerge, out, tasks) == pytest.approx(last_point(out))
    moe = package.load_moe(out, tasks=tasks.split(","), hub="local")
    rows = [("question: is 3 even?", ("Yes", "No")), ("question: is 4 even?", ("Yes", "No"))]
    answers = moe(rows, task="even")
    assert all(one["label"] in ("Yes", "No") for one in answers)
    (alone,) = moe(rows[0], task="even")
    assert alone["label"] == answers[0]["label"]
    assert alone["score"] == pytest.approx(answers[0]["score"], abs=1e-5)


def test_tasks_of_two_families(folder: Path, hubmerge: Command) -> None:
    said = hubmerge("moerge", "t5/even@step4", "t5/odd@step4", *SHORT,
                    "--tasks", tasks_in(folder, "even", "films-label"))  # fmt: skip
    assert said.code in (1, 2), said.err
    assert "cannot" in said.err
    assert "in a way it should not" not in said.err


def test_experts_of_two_families(folder: Path, hubmerge: Command) -> None:
    said = hubmerge("moerge", "t5/even@step4", "bert/films-label@step4", *SHORT,
                    "--tasks", tasks_in(folder, "even"))  # fmt: skip
    assert said.code == 3, said.err
    assert "base" in said.err


def test_the_same_mixture_is_the_same_bytes(
    folder: Path, hubmerge: Command, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(folder, tmp_path / "first", ("t5/even", "t5/odd"))
    run = json.loads((first / "hubmerge.json").read_text())["run"]
    shutil.rmtree(world.home / "moes" / run[:12])
    again = made(folder, tmp_path / "again", ("t5/even", "t5/odd"))
    one, other = contents(first), contents(again)
    names = [name for name in one if not name.startswith(("README", "curve"))]
    assert all(one[name] == other[name] for name in names)
