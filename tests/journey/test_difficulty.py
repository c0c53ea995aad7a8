"""Hard examples on a real Hub: scored, shown, dropped from training; and what a merge forgot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hubmerge.difficulty.difficulty import read_difficulty
from hubmerge.flows.difficulty import answers_of
from hubmerge.flows.evaluate import Bench
from hubmerge.forgetting import parse_forgetting
from hubmerge.hub.client import Hub
from hubmerge.models.loading import open_model
from hubmerge.opening.references import open_ref, pin_task
from hubmerge.predictions import Answers
from hubmerge.refs import parse_ref
from hubmerge.selection.task_split import Dressed, Stage
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from tests.journey.conftest import TRAIN, WEIGHTS, Command, World, command
from tests.models.worlds import tiny_bert

CPU = torch.device("cpu")
ROWS = 400  # of validation
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def scored(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The difficulty of train of mini-mnist, by two steps of its expert."""
    path = tmp_path_factory.mktemp("scored") / "difficulty.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HUBMERGE_HOME", str(world.home))
        said = command(
            "difficulty", "demo/mnist@step2", "demo/mnist@step8", "--task", "mini-mnist",
            "--out", str(path), "--json",
        )  # fmt: skip
    assert said.code == 0, said.err
    return path


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of both experts."""
    folder = tmp_path_factory.mktemp("made") / "m"
    words = ("demo/mnist@step8", "demo/hebrew@step8", "--method", "average", "--out", str(folder))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HUBMERGE_HOME", str(world.home))
        said = command("merge", *words)
    assert said.code == 0, said.err
    return folder


@pytest.fixture
def merged(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may write to."""
    return Path(shutil.copytree(made, tmp_path / "m"))


def told(hub: Hub, name: str, task: str = "mini-mnist") -> Answers:
    opened = open_ref(hub, parse_ref(name))
    return answers_of(hub, opened, pin_task(hub, find_task(task)), "validation", "cpu")


def test_scores_are_means_over_the_models(hubmerge: Command, hub: Hub, tmp_path: Path) -> None:
    words = (
        "demo/mnist@step4", "demo/mnist@step8", "--task", "mini-mnist", "--split", "validation",
        "--every-step", "--out", tmp_path / "d.json", "--picture", tmp_path / "hard.png",
        "--examples", "9",
    )  # fmt: skip
    said = hubmerge("difficulty", *words, "--json")
    assert said.code == 0, said.err
    four, eight = told(hub, "demo/mnist@step4"), told(hub, "demo/mnist@step8")
    found, data = read_difficulty(tmp_path / "d.json"), said.data
    np.testing.assert_allclose(found.el2n, (four.el2n + eight.el2n) / 2, atol=1e-6)
    np.testing.assert_allclose(found.margin, (four.margin + eight.margin) / 2, atol=1e-6)
    assert found.predicted == tuple(eight.predicted)
    assert [one["step"] for one in data["course"]] == [2, 4, 8]
    assert [one["label"] for one in data["models"]] == ["demo/mnist@step4", "demo/mnist@step8"]
    assert sum(one["size"] for one in data["bins"]) == data["rows"] == ROWS
    assert len(data["hardest"]) == 9
    assert data["hardest"][0]["el2n"] == max(found.el2n)
    assert (tmp_path / "hard.png").read_bytes().startswith(PNG)


def test_a_merge_in_memory_answers_as_it_does_in_its_folder(hub: Hub, merged: Path) -> None:
    task = pin_task(hub, find_task("mini-mnist"))
    split = load_split(task, "validation")
    base = open_ref(hub, parse_ref("hubmerge/tiny-clip"))
    stage = Stage(Dressed(open_model(base.folder), CPU), split)
    stage.dressed.wear(load_file(merged / WEIGHTS))
    worn, read = stage.answers(range(ROWS), merged), told(hub, str(merged))
    np.testing.assert_allclose(worn.el2n, read.el2n, atol=1e-5)
    assert worn.predicted.tolist() == read.predicted.tolist()
    bits = stage.ask(range(ROWS), merged)
    assert [bit == "1" for bit in bits] == worn.right.tolist()


def test_a_bench_reads_rows_once_and_measures_the_same(hub: Hub) -> None:
    opened, task = open_ref(hub, parse_ref("demo/mnist@step8")), find_task("mini-mnist")
    bench = Bench(hub, "validation", CPU)
    said = answers_of(hub, opened, pin_task(hub, task), "validation", bench=bench)
    assert bench.measure(opened, pin_task(hub, task)).value == pytest.approx(said.accuracy)


def test_an_expert_is_trained_without_the_hardest(
    hubmerge: Command, hub: Hub, scored: Path, tmp_path: Path
) -> None:
    words = ("train", *TRAIN, "--task", "mini-mnist", "--drop-hardest", "0.05", "--difficulty")
    said = hubmerge(*words, scored, "--to", "demo/pruned")
    assert said.code == 0, said.err
    manifest = open_ref(hub, parse_ref("demo/pruned@step8")).manifest
    assert manifest is not None
    training = manifest.training
    assert (training["dropped"], training["of_rows"]) == (200, 4000)
    assert training["difficulty"] == read_difficulty(scored).digest
    # The same rows by another file are the same run.
    moved = Path(shutil.copy(scored, tmp_path / "moved.json"))
    plan = hubmerge(*words, moved, "--to", "demo/pruned", "--dry-run", "--json")
    assert (plan.code, plan.data["run"]) == (0, manifest.run)
    other = hubmerge(*words, moved, "--to", "demo/p", "--seed", "1", "--dry-run", "--json")
    assert other.data["run"] != manifest.run


def test_scores_of_another_task_are_refused(hubmerge: Command, scored: Path) -> None:
    words = ("--task", "mini-hebrew", "--to", "demo/no", "--drop-hardest", "0.05")
    said = hubmerge("train", *TRAIN, *words, "--difficulty", scored)
    assert said.code == 1
    assert "The difficulty is that of train of mini-mnist@" in said.err
    alone = hubmerge("train", *TRAIN, *words)
    assert (alone.code, "`drop_hardest` has no effect here" in alone.err) == (2, True)


def test_what_a_merge_forgot_is_told_and_shown_in_its_card(
    hubmerge: Command, hub: Hub, merged: Path
) -> None:
    said = hubmerge("explain", merged, "--split", "validation", "--json")
    assert said.code == 0, said.err
    digest = open_ref(hub, parse_ref(str(merged))).digest
    found = parse_forgetting((merged / "forgotten.json").read_bytes(), "here", digest)
    assert json.loads((merged / "forgotten.json").read_text()) == {**said.data, "pictured": True}
    mnist, hebrew = found.experts
    before, after = told(hub, "demo/mnist@step8"), told(hub, str(merged))
    assert mnist.bins.total == int((before.right & ~after.right).sum()) > 0
    assert mnist.learnt == int((after.right & ~before.right).sum())
    assert (mnist.before, mnist.after) == (before.accuracy, after.accuracy)
    assert mnist.bins.total == sum(its.forgotten for its in mnist.classes)
    assert (mnist.scored_by, hebrew.expert) == (("demo/mnist@step8",), "demo/hebrew@step8")
    for name in ("forgotten.png", "forgotten-examples.png"):
        assert (merged / name).read_bytes().startswith(PNG)
    card = hubmerge("card", merged)
    assert "## What it forgot" in card.out
    assert "](forgotten-examples.png)" in card.out
    assert hubmerge("verify", merged).code == 0
    again = hubmerge("explain", merged, "--split", "validation", "--examples", "0", "--quiet")
    assert again.code == 0
    assert not (merged / "forgotten-examples.png").exists()


def test_bins_are_those_of_a_difficulty(hubmerge: Command, merged: Path, tmp_path: Path) -> None:
    where = ("--split", "validation")
    scores = tmp_path / "d.json"
    early = ("demo/mnist@step2", "--task", "mini-mnist", *where)
    table = hubmerge("difficulty", *early, "--out", scores)
    assert (table.code, table.out.count("demo/mnist@step2")) == (0, 1)
    words = (*where, "--tasks", "mini-mnist", "--difficulty", scores, "--out", tmp_path / "out")
    said = hubmerge("explain", merged, *words, "--json")
    assert said.code == 0, said.err
    [only] = said.data["experts"]
    assert only["scored_by"] == ["demo/mnist@step2"]
    assert (tmp_path / "out" / "forgotten.json").is_file()
    assert not (merged / "forgotten.json").exists()
    assert "forgotten by bin, %" in hubmerge("explain", merged, *words).out


def test_hard_texts_are_listed(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "bert")
    words = ("difficulty", tmp_path / "bert", "--task", "mini-emoji", "--split", "validation")
    said = hubmerge(*words, "--examples", "3")
    assert said.code == 0, said.err
    assert "hardest texts" in said.out
    hardest = hubmerge(*words, "--examples", "1", "--json").data["hardest"]
    assert hardest[0].keys() == {"row", "class", "predicted", "el2n", "text"}
    refused = hubmerge(*words, "--picture", tmp_path / "d.png")
    assert (refused.code, "task mini-emoji has none" in refused.err) == (2, True)


FEW = "400 rows of validation of task mini-mnist do not fill 401 bins"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("explain", "demo/mnist"), 2, "was not merged by hubmerge"),
        (("explain", "MERGED", "--tasks", "mini-fashion"), 2, "has no expert for mini-fashion@"),
        (("explain", "MERGED", "--split", "test", "--difficulty", "SCORED"), 1,
         "The difficulty is of 4000 rows of train of mini-mnist@"),
        (("difficulty", "demo/mnist", "--split", "validation", "--bins", "401"), 2, FEW),
        (("difficulty", ".", "--every-step"), 2, "--every-step goes with repositories"),
        (("difficulty", "demo/mnist", "--out", "d.txt"), 2, "--out d.txt is no JSON file"),
        (("difficulty", "demo/mnist", "--picture", "no/d.png"), 2, "There is no folder no"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_a_sentence(
    words: tuple[str, ...], code: int, sentence: str, hubmerge: Command, made: Path, scored: Path
) -> None:
    places = {"MERGED": str(made), "SCORED": str(scored)}
    task = ("--task", "mini-mnist") if words[0] == "difficulty" else ()
    said = hubmerge(*(places.get(word, word) for word in words), *task)
    assert (said.code, sentence in said.err) == (code, True), said.err
    assert "Traceback" not in said.err
