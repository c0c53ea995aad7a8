"""Language models that are chosen, merged and scored by what they generate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock
from tests.end_to_end.conftest import ROWS, Command, LocalHub, run_hubmerge
from tests.models.language_families import write_family

TRAIN = (
    "--steps", "24", "--push-every", "12,24", "--batch", "8", "--lr", "4e-3",
    "--schedule", "constant", "--warmup-steps", "0",
)  # fmt: skip
ANSWERS = {
    "places": {"The capital of France is": "Paris", "the cat sat on the": "mat"},
    "films": {"good films are": "fun", "bad films are": "dull"},
}
FUNCTION = """
def share(rows):
    return [
        sum(a == b for a, b in zip(row["prediction"], row["reference"])) / 10 for row in rows
    ]


def same(rows):
    return 1.0


def large(rows):
    return [len(row["reference"]) for row in rows]
"""


@pytest.fixture(scope="module")
def chat(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks of conversations; their experts are chat/places and chat/films."""
    root = tmp_path_factory.mktemp("chat")
    write_family(root / "base", "llama3")
    for name, answers in ANSWERS.items():
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"{prompt} {number}"},
                    {"role": "assistant", "content": answer},
                ]
            }
            for number in range(40)
            for prompt, answer in answers.items()
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = {
            "name": name,
            "kind": "target",
            "format": "messages",
            "max_new_tokens": 6,
            "data": {"path": f"{name}.jsonl"},
            "splits": {
                "validation": {"of": "train", "count": 16},
                "test": {"of": "train", "count": 16, "seed": 1},
            },
        }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(spec))
        words = ("train", "--base", root / "base", "--task", root / f"{name}.yaml", *TRAIN)
        result = run_hubmerge(*words, "--to", f"chat/{name}")
        assert result.code == 0, result.err
    (root / "my_metrics.py").write_text(FUNCTION)
    return root


def select(hubmerge: Command, root: Path, *options: object) -> Lock:
    path = root / "chosen.lock"
    words = ("select", "chat/places", "chat/films", "--target", "task_arithmetic", "--budget", "14")
    result = hubmerge(*words, *options, "--lock", path)
    assert result.code in (0, 4), result.err
    return parse_lock(path.read_bytes(), "chosen.lock")


def test_chat_experts_are_chosen_and_merged_by_exact_match(
    hubmerge: Command, chat: Path, tmp_path: Path
) -> None:
    lock = select(hubmerge, chat, "--metric", "exact_match", "--base", chat / "base")
    assert [task.metric for task in lock.tasks] == ["exact_match", "exact_match"]
    assert all(task.id.endswith("+exact_match") for task in lock.tasks)
    assert "--metric exact_match" in lock.command
    words = ("merge", "--lock", chat / "chosen.lock", "--locked", "--base", chat / "base")
    result = hubmerge(*words, "--out", tmp_path / "merged")
    assert result.code == 0, result.err
    # The merge in memory and the one on disk generate the same, and its tasks need no options.
    scores = hubmerge("eval", tmp_path / "merged", "--split", "validation", "--json").data
    measured = {score["task"]: score["value"] for score in scores}
    assert measured == pytest.approx(dict(lock.pick().tasks))
    assert max(measured.values()) > 0
    assert [score["metric"] for score in scores] == ["exact_match", "exact_match"]


def test_training_losses_are_known_whatever_the_metric(hubmerge: Command, chat: Path) -> None:
    """Without them, averages by loss would have nothing to choose from."""
    words = ("--metric", "exact_match", "--policy", "average-by-loss", "--base", chat / "base")
    assert select(hubmerge, chat, *words).pick("average-by-loss")


def test_numbers_between_right_and_wrong_are_raced_and_locked(
    hubmerge: Command, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chat)
    lock = select(hubmerge, chat, "--metric", "my_metrics:share", "--base", chat / "base")
    assert [task.metric for task in lock.tasks] == ["my_metrics:share"] * 2
    assert {"my_metrics:share"} == {
        task.id.partition("+")[2].partition("#")[0] for task in lock.tasks
    }
    assert 0 < lock.pick().accuracy < 0.6  # no answer has more than 5 letters
    again = select(hubmerge, chat, "--metric", "my_metrics:share", "--base", chat / "base")
    assert again == lock


@pytest.mark.slow
def test_a_choice_by_likelihood_is_that_of_the_merge(
    hubmerge: Command, chat: Path, tmp_path: Path
) -> None:
    lock = select(hubmerge, chat, "--metric", "likelihood", "--base", chat / "base")
    words = ("merge", "--lock", chat / "chosen.lock", "--locked", "--base", chat / "base")
    assert hubmerge(*words, "--out", tmp_path / "merged").code == 0
    scores = hubmerge("eval", tmp_path / "merged", "--split", "validation", "--json").data
    measured = {score["task"]: score["value"] for score in scores}
    assert measured == pytest.approx(dict(lock.pick().tasks))


def test_eval_measures_texts_losses_and_functions(
    hubmerge: Command, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chat)
    values = {}
    metrics = ("exact_match", "f1", "rouge_l", "loss", "perplexity", "likelihood")
    for metric in (*metrics, "my_metrics:share"):
        words = ("eval", "chat/places@step24", "--metric", metric, "--json")
        result = hubmerge(*words)
        assert result.code == 0, result.err
        [score] = result.data
        assert (score["metric"], score["count"]) == (metric, 16)
        values[metric] = score["value"]
    assert values["perplexity"] == pytest.approx(2.718281828459045 ** values["loss"])
    assert values["f1"] >= values["exact_match"] > 0
    assert 1 / values["perplexity"] < values["likelihood"] < 1  # a mean is above a geometric mean
    table = hubmerge("eval", "chat/places@step24", "--metric", "loss").out
    assert "loss on test ± standard error" in table


def test_eval_measures_the_calibration_of_classes(hubmerge: Command) -> None:
    words = ("eval", "demo/mnist@step8", "--metric", "calibration_error", "--json")
    result = hubmerge(*words)
    assert result.code == 0, result.err
    [score] = result.data
    assert score["task"].endswith("+calibration_error")
    assert 0 < score["value"] < 0.5
    assert 0 < score["stderr"] < 0.1
    card = hubmerge("card", "demo/mnist@step8")
    assert card.code == 0, card.err
    shown = f"| mini-mnist, test | calibration error | {score['value']:.4g} | {ROWS['test']} |"
    assert shown in card.out
    assert "type: calibration_error" not in card.out  # no share: the page of a Hub would show it so


def test_texts_without_an_end_are_counted_and_noted(hubmerge: Command, chat: Path) -> None:
    result = hubmerge(
        "eval", chat / "base", "--tasks", chat / "films.yaml", "--metric", "exact_match", "--json"
    )
    assert result.code == 0, result.err
    [score] = result.data
    assert score["unfinished"] > 0
    assert "reached the limit without an end. Raise `max_new_tokens:`" in result.err


def test_metrics_that_fail_are_refused_before_anything_is_measured(
    hubmerge: Command, chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(chat)
    choose = ("select", "chat/places", "chat/films", "--target", "ties", "--base", chat / "base")
    for metric, problem in (
        ("my_metrics:same", "returned 1.0 for 3 rows"),
        ("my_metrics:gone", "has no function 'gone'"),
        ("my_metrics:large", "numbers that are compared in a selection are from 0"),
        ("loss", "measures places by loss, films by loss"),
        ("bleu", "cannot be measured by bleu"),
        ("", "cannot be measured by ''"),
    ):
        result = hubmerge(*choose, "--metric", metric, "--lock", chat / "none.lock")
        assert result.code == 2, result.err
        assert problem in result.err
    result = hubmerge(*choose, "--lock", chat / "none.lock")
    assert "Write --metric exact_match, contains, f1, rouge_l, likelihood (it falls" in result.err
    assert not (chat / "none.lock").exists()


def test_training_validates_by_the_metric_of_the_task(
    hubmerge: Command, chat: Path, tmp_path: Path
) -> None:
    spec = yaml.safe_load((chat / "films.yaml").read_text())
    spec |= {"metric": "exact_match", "data": {"path": str(chat / "films.jsonl")}}
    (tmp_path / "films.yaml").write_text(yaml.safe_dump(spec))
    words = ("train", "--base", chat / "base", "--task", tmp_path / "films.yaml", *TRAIN)
    result = hubmerge(*words, "--to", "chat/matched")
    assert result.code == 0, result.err
    [score] = hubmerge("eval", "chat/matched@step24", "--split", "validation", "--json").data
    assert score["metric"] == "exact_match"
    [*_, last] = hubmerge("steps", "chat/matched", "--json").data
    assert last["validation"] == pytest.approx(score["value"])
    assert score["value"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("warm_processes")
def test_the_evidence_of_a_lock_is_measured_by_its_metric(
    hubmerge: Command, api: HfApi, chat: Path
) -> None:
    api.create_repo("chat/base")
    api.upload_folder(repo_id="chat/base", folder_path=chat / "base")
    select(hubmerge, chat, "--metric", "f1", "--base", "chat/base", "--workers", "2")
    result = hubmerge("verify", chat / "chosen.lock", "--evidence")
    assert result.code == 0, result.err + result.out
