"""Difficulty end to end: scored, shown, dropped from training; and what a merge forgot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hubmerge.difficulty.difficulty import read_difficulty
from hubmerge.flows.evaluate import ModelEvaluator
from hubmerge.forgetting import parse_forgetting
from hubmerge.hub.client import Hub
from hubmerge.models.loading import load_model
from hubmerge.opening.references import open_ref, pin_task
from hubmerge.predictions import Predictions
from hubmerge.refs import parse_ref
from hubmerge.selection.task_split import LoadedModel, TaskSplit, load_merge
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from tests.end_to_end.conftest import ROWS, TRAIN, WEIGHTS, Command, LocalHub, run_hubmerge
from tests.models.builders import tiny_bert

CPU = torch.device("cpu")
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def difficulty_file(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The difficulty of the train split of mini-mnist, from the last step of its expert."""
    path = tmp_path_factory.mktemp("scored") / "difficulty.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HUBMERGE_HOME", str(local_hub.home))
        result = run_hubmerge(
            "difficulty", "demo/mnist@step8", "--task", "mini-mnist", "--out", str(path), "--json",
        )  # fmt: skip
    assert result.code == 0, result.err
    return path


@pytest.fixture(scope="module")
def shared_merge(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a merge of both experts."""
    folder = tmp_path_factory.mktemp("merge") / "m"
    words = ("demo/mnist@step8", "demo/hebrew@step8", "--method", "average", "--out", str(folder))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HUBMERGE_HOME", str(local_hub.home))
        result = run_hubmerge("merge", *words)
    assert result.code == 0, result.err
    return folder


@pytest.fixture
def merged(shared_merge: Path, tmp_path: Path) -> Path:
    """A copy of `shared_merge` that a test may change."""
    return Path(shutil.copytree(shared_merge, tmp_path / "m"))


def predict(hub: Hub, ref: str) -> Predictions:
    """The predictions of a model for the validation split of mini-mnist."""
    model, task = open_ref(hub, parse_ref(ref)), pin_task(hub, find_task("mini-mnist"))
    return ModelEvaluator(hub, "validation", CPU).predict(model, task)


def test_scores_are_means_over_the_models(hubmerge: Command, hub: Hub, tmp_path: Path) -> None:
    words = (
        "demo/mnist@step4", "demo/mnist@step8", "--task", "mini-mnist", "--split", "validation",
        "--every-step", "--out", tmp_path / "d.json", "--picture", tmp_path / "hard.png",
        "--examples", "9",
    )  # fmt: skip
    result = hubmerge("difficulty", *words, "--json")
    assert result.code == 0, result.err
    four, eight = predict(hub, "demo/mnist@step4"), predict(hub, "demo/mnist@step8")
    difficulty, data = read_difficulty(tmp_path / "d.json"), result.data
    np.testing.assert_allclose(difficulty.el2n, (four.el2n + eight.el2n) / 2, atol=1e-6)
    np.testing.assert_allclose(difficulty.margin, (four.margin + eight.margin) / 2, atol=1e-6)
    assert difficulty.predicted == tuple(eight.predicted)
    assert [model["step"] for model in data["course"]] == [2, 4, 8]
    assert [model["label"] for model in data["models"]] == ["demo/mnist@step4", "demo/mnist@step8"]
    assert sum(bin_["size"] for bin_ in data["bins"]) == data["rows"] == ROWS["validation"]
    assert len(data["hardest"]) == 9
    assert data["hardest"][0]["el2n"] == max(difficulty.el2n)
    assert (tmp_path / "hard.png").read_bytes().startswith(PNG)


def test_a_merge_in_memory_predicts_as_from_its_folder(hub: Hub, merged: Path) -> None:
    task = pin_task(hub, find_task("mini-mnist"))
    split = load_split(task, "validation")
    base = open_ref(hub, parse_ref("hubmerge/tiny-clip"))
    task_split = TaskSplit(LoadedModel(load_model(base.folder), CPU), split)
    load_merge([task_split.loaded_model], load_file(merged / WEIGHTS).items())
    in_memory = task_split.predict(range(ROWS["validation"]), merged)
    from_folder = predict(hub, str(merged))
    np.testing.assert_allclose(in_memory.el2n, from_folder.el2n, atol=1e-5)
    assert in_memory.predicted.tolist() == from_folder.predicted.tolist()
    bits = task_split.evaluate(range(ROWS["validation"]), merged).values
    assert [bit == "1" for bit in bits] == in_memory.correct.tolist()


def test_a_shared_evaluator_gives_the_same_accuracy(hub: Hub) -> None:
    model, task = open_ref(hub, parse_ref("demo/mnist@step8")), find_task("mini-mnist")
    evaluator = ModelEvaluator(hub, "validation", CPU)
    predictions = evaluator.predict(model, pin_task(hub, task))
    score = evaluator.measure(model, pin_task(hub, task))
    assert score.value == pytest.approx(predictions.accuracy)


@pytest.mark.slow
def test_an_expert_is_trained_without_the_hardest(
    hubmerge: Command, hub: Hub, difficulty_file: Path, tmp_path: Path
) -> None:
    words = ("train", *TRAIN, "--task", "mini-mnist", "--drop-hardest", "0.05", "--difficulty")
    result = hubmerge(*words, difficulty_file, "--to", "demo/pruned")
    assert result.code == 0, result.err
    manifest = open_ref(hub, parse_ref("demo/pruned@step8")).manifest
    assert manifest is not None
    training = manifest.training
    assert (training["dropped"], training["of_rows"]) == (50, ROWS["train"])
    assert training["difficulty"] == read_difficulty(difficulty_file).digest
    # The same rows from another file give the same run.
    moved = Path(shutil.copy(difficulty_file, tmp_path / "moved.json"))
    plan = hubmerge(*words, moved, "--to", "demo/pruned", "--dry-run", "--json")
    assert (plan.code, plan.data["run"]) == (0, manifest.run)
    other = hubmerge(*words, moved, "--to", "demo/p", "--seed", "1", "--dry-run", "--json")
    assert other.data["run"] != manifest.run


def test_scores_of_another_task_are_refused(hubmerge: Command, difficulty_file: Path) -> None:
    words = ("--task", "mini-hebrew", "--to", "demo/no", "--drop-hardest", "0.05")
    result = hubmerge("train", *TRAIN, *words, "--difficulty", difficulty_file)
    assert result.code == 1
    assert "The difficulty is of train of mini-mnist@" in result.err
    refused = hubmerge("train", *TRAIN, *words)
    assert (refused.code, "`drop_hardest` has no effect here" in refused.err) == (2, True)


def test_what_a_merge_forgot_is_reported_and_shown_in_its_card(
    hubmerge: Command, hub: Hub, merged: Path
) -> None:
    result = hubmerge("explain", merged, "--split", "validation", "--json")
    assert result.code == 0, result.err
    digest = open_ref(hub, parse_ref(str(merged))).digest
    forgetting = parse_forgetting((merged / "forgotten.json").read_bytes(), "here", digest)
    assert json.loads((merged / "forgotten.json").read_text()) == {**result.data, "pictured": True}
    mnist, hebrew = forgetting.experts
    before, after = predict(hub, "demo/mnist@step8"), predict(hub, str(merged))
    assert mnist.bins.total == int((before.correct & ~after.correct).sum()) > 0
    assert mnist.learnt == int((after.correct & ~before.correct).sum())
    assert (mnist.before, mnist.after) == (before.accuracy, after.accuracy)
    assert mnist.bins.total == sum(part.forgotten for part in mnist.classes)
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


@pytest.mark.slow
def test_bins_follow_a_given_difficulty(hubmerge: Command, merged: Path, tmp_path: Path) -> None:
    split = ("--split", "validation")
    scores = tmp_path / "d.json"
    words = ("demo/mnist@step2", "--task", "mini-mnist", *split)
    table = hubmerge("difficulty", *words, "--out", scores)
    assert (table.code, table.out.count("demo/mnist@step2")) == (0, 1)
    words = (*split, "--tasks", "mini-mnist", "--difficulty", scores, "--out", tmp_path / "out")
    result = hubmerge("explain", merged, *words, "--json")
    assert result.code == 0, result.err
    [expert] = result.data["experts"]
    assert expert["scored_by"] == ["demo/mnist@step2"]
    assert (tmp_path / "out" / "forgotten.json").is_file()
    assert not (merged / "forgotten.json").exists()
    assert "forgotten by bin, %" in hubmerge("explain", merged, *words).out


def test_hard_texts_are_listed(hubmerge: Command, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "bert")
    words = ("difficulty", tmp_path / "bert", "--task", "mini-emoji", "--split", "validation")
    result = hubmerge(*words, "--examples", "3")
    assert result.code == 0, result.err
    assert "hardest texts" in result.out
    hardest = hubmerge(*words, "--examples", "1", "--json").data["hardest"]
    assert hardest[0].keys() == {"row", "class", "predicted", "el2n", "text"}
    refused = hubmerge(*words, "--picture", tmp_path / "d.png")
    assert (refused.code, "task mini-emoji has none" in refused.err) == (2, True)


FEW = f"{ROWS['validation']} rows of validation of task mini-mnist do not fill 101 bins"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("explain", "demo/mnist"), 2, "was not merged by hubmerge"),
        (("explain", "MERGED", "--tasks", "mini-fashion"), 2, "has no expert for mini-fashion@"),
        (("explain", "MERGED", "--split", "test", "--difficulty", "SCORED"), 1,
         "The difficulty is of 1000 rows of train of mini-mnist@"),
        (("difficulty", "demo/mnist", "--split", "validation", "--bins", "101"), 2, FEW),
        (("difficulty", ".", "--every-step"), 2, "--every-step needs repositories"),
        (("difficulty", "demo/mnist", "--out", "d.txt"), 2, "--out d.txt is not a JSON file"),
        (("difficulty", "demo/mnist", "--picture", "no/d.png"), 2, "There is no folder no"),
    ],
)  # fmt: skip
def test_invalid_options_are_refused(
    words: tuple[str, ...],
    code: int,
    message: str,
    hubmerge: Command,
    shared_merge: Path,
    difficulty_file: Path,
) -> None:
    paths = {"MERGED": str(shared_merge), "SCORED": str(difficulty_file)}
    task = ("--task", "mini-mnist") if words[0] == "difficulty" else ()
    result = hubmerge(*(paths.get(word, word) for word in words), *task)
    assert (result.code, message in result.err) == (code, True), result.err
    assert "Traceback" not in result.err
