"""Tasks of lm_eval have the numbers that the `lm_eval` command prints for the same folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock
from hubmerge.server import lease
from tests.end_to_end.conftest import Command, CommandResult, run_hubmerge
from tests.models.language_families import write_family
from tests.tasks.lm_eval_files import TASKS, write_tasks

pytest.importorskip("lm_eval", reason="lm_eval is an extra")

TRAIN = (
    "--steps", "24", "--push-every", "8,16,24", "--batch", "8", "--lr", "4e-3",
    "--schedule", "constant", "--warmup-steps", "0",
)  # fmt: skip
ANSWERS = {
    "places": {"The capital of France is": "Paris", "the cat sat on the": "mat"},
    "films": {"good films are": "fun", "bad films are": "dull"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models llama3, gpt2 and t5, and tasks of lm_eval."""
    root = tmp_path_factory.mktemp("harness")
    for family in ("llama3", "gpt2", "t5"):
        write_family(root / family, family)
    write_tasks(root / "tasks")
    return root


@pytest.fixture
def api(running_home: Path) -> Iterator[HfApi]:
    """The official client of that Hub."""
    with lease(running_home / "hub") as server:
        yield HfApi(endpoint=server.url, token=server.token)


@pytest.fixture
def hubmerge(world: Path, running_hub: None, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command `hubmerge` with the Hub that runs until the last test."""
    return run_hubmerge


@cache
def harness(folder: Path, tasks: tuple[str, ...], include: Path, **options: Any) -> Any:
    """What the `lm_eval` command prints of a model: task -> metric,filter -> value."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    # The report of the machine runs a dozen programs, and decides nothing.
    evaluator.add_env_info = lambda results: None
    results = evaluator.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32", "device": "cpu"},
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(include), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    return results["results"]


def measure(hubmerge: Command, model: Path, tasks: str, include: Path, *more: str) -> Any:
    words = ("eval", model, "--tasks", tasks, "--include-path", include, *more, "--json")
    result = hubmerge(*words)
    assert result.code == 0, result.err
    return result.data


@pytest.mark.parametrize("family", ["llama3", "gpt2", "t5"])
def test_every_task_has_the_number_of_lm_eval(hubmerge: Command, world: Path, family: str) -> None:
    tasks = tuple(TASKS) if family != "t5" else ("choices", "words", "sums")
    expected = harness(world / family, tasks, world / "tasks")
    scores = measure(hubmerge, world / family, "lm-eval:choices", world / "tasks")
    others = ",".join(f"lm-eval:{task}" for task in tasks[1:])
    scores += measure(hubmerge, world / family, others, world / "tasks", "--split", "all")
    metrics = ["acc,none", "perplexity,none", "exact_match,strict", "word_perplexity,none"]
    assert [score["metric"] for score in scores] == metrics[: len(tasks)]
    for score, task in zip(scores, tasks, strict=True):
        value = expected[task][score["metric"]]
        assert score["value"] == pytest.approx(value, rel=1e-6, abs=1e-6)
        assert score["count"] == 24
        assert score["task"].startswith(f"lm-eval:{task}@")
    assert 0 < scores[0]["value"] < 1


@pytest.mark.parametrize(
    ("task", "metric", "label"),
    [
        ("choices", "acc_norm", "acc_norm,none"),
        ("words", "acc", "acc,none"),
        ("sums", "exact_match,letter", "exact_match,letter"),
        ("texts", "bits_per_byte", "bits_per_byte,none"),
    ],
)
def test_every_metric_and_filter_is_that_of_lm_eval(
    hubmerge: Command, world: Path, task: str, metric: str, label: str
) -> None:
    expected = harness(world / "llama3", tuple(TASKS), world / "tasks")
    split = () if task == "choices" else ("--split", "all")
    words = (world / "llama3", f"lm-eval:{task}", world / "tasks", *split, "--metric", metric)
    [score] = measure(hubmerge, *words)
    assert score["metric"] == label
    assert score["task"].endswith(f"+{label}")
    assert score["value"] == pytest.approx(expected[task][label], rel=1e-6, abs=1e-6)


def test_shots_and_chat_template_are_those_of_lm_eval(hubmerge: Command, world: Path) -> None:
    options = {"num_fewshot": 1, "apply_chat_template": True, "fewshot_as_multiturn": True}
    include = world / "tasks"
    expected = harness(world / "llama3", ("texts", "choices", "words"), include, **options)
    words = "lm-eval:choices/1-shot/chat"
    for metric in ("acc", "acc_norm"):
        [score] = measure(hubmerge, world / "llama3", words, include, "--metric", metric)
        assert score["value"] == pytest.approx(expected["choices"][f"{metric},none"], abs=1e-6)
    words = "lm-eval:words/1-shot/chat"
    [score] = measure(hubmerge, world / "llama3", words, include, "--split", "all")
    assert score["value"] == pytest.approx(expected["words"]["perplexity,none"], rel=1e-6)


def test_validation_is_what_lm_eval_measures_without_a_test_split(
    hubmerge: Command, world: Path, tmp_path: Path
) -> None:
    words = (world / "llama3", "lm-eval:choices", world / "tasks", "--split", "validation")
    [score] = measure(hubmerge, *words)
    write_tasks(tmp_path / "tasks", test_split=None)
    alone = harness(world / "llama3", ("choices",), tmp_path / "tasks")["choices"]
    assert score["value"] == pytest.approx(alone["acc,none"], abs=1e-6)


def test_a_task_with_one_split_is_carved_and_says_so(hubmerge: Command, world: Path) -> None:
    words = ("eval", world / "llama3", "--tasks", "lm-eval:words", "--metric", "acc")
    options = ("--include-path", world / "tasks", "--json")
    parts = {}
    for split in ("validation", "test", "all"):
        result = hubmerge(*words, *options, "--split", split)
        assert result.code == 0, result.err
        assert ("has one split, validation: a half" in result.err) is (split != "all")
        [parts[split]] = result.data
    assert [parts[split]["count"] for split in ("validation", "test", "all")] == [12, 12, 24]
    halves = (parts["validation"]["value"] + parts["test"]["value"]) / 2
    assert halves == pytest.approx(parts["all"]["value"])


@pytest.fixture(scope="module")
def chat(running_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, and two tasks of lm_eval; their experts are chat/places and films."""
    root = tmp_path_factory.mktemp("chat")
    write_family(root / "base", "llama3")
    (root / "tasks").mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("HUBMERGE_HOME", str(running_home))
    for name, answers in ANSWERS.items():
        turns = [
            {"messages": [{"role": "user", "content": f"{prompt} {number}"},
                          {"role": "assistant", "content": answer}]}
            for number in range(40) for prompt, answer in answers.items()
        ]  # fmt: skip
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
        questions = [
            {"question": f"{prompt} {number}", "answer": answer}
            for number in range(40, 52)
            for prompt, answer in answers.items()
        ]
        path = root / "tasks" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in questions))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}
        fields = {**TASKS["sums"], **data, "task": f"ask_{name}"}
        (root / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(fields))
        result = run_hubmerge(
            "train", "--base", root / "base", "--task", root / f"{name}.jsonl", *TRAIN, "--to",
            f"harness/{name}",
        )  # fmt: skip
        assert result.code == 0, result.err
    patch.undo()
    return root


def select(hubmerge: Command, root: Path, *more: object) -> CommandResult:
    names = "lm-eval:ask_places/chat,lm-eval:ask_films/chat"
    return hubmerge(
        "select", "harness/places", "harness/films", "--target", "task_arithmetic", "--budget",
        "25", "--base", root / "base", "--tasks", names, "--lock", root / "chosen.lock", *more,
    )  # fmt: skip


def read_lock(root: Path) -> Lock:
    return parse_lock((root / "chosen.lock").read_bytes(), "chosen.lock")


def test_experts_are_chosen_merged_and_scored_by_tasks_of_lm_eval(
    hubmerge: Command, running_home: Path, chat: Path, tmp_path: Path
) -> None:
    include = ("--include-path", chat / "tasks")
    result = select(hubmerge, chat, *include)
    assert result.code in (0, 4), result.err
    assert "lm-eval:ask_films/chat has one split, test" in result.err
    lock = read_lock(chat)
    names = [task.id.partition("@")[0] for task in lock.tasks]
    assert names == ["lm-eval:ask_places/chat", "lm-eval:ask_films/chat"]
    assert [task.metric for task in lock.tasks] == ["exact_match,strict"] * 2
    assert [task.rows for task in lock.tasks] == [12, 12]
    assert f"--include-path {chat / 'tasks'}" in lock.command
    assert lock.pick().accuracy > 0

    words = ("merge", "--lock", chat / "chosen.lock", "--locked", "--base", chat / "base")
    merged = tmp_path / "merged"
    assert hubmerge(*words, "--out", merged).code == 0
    # The manifest names the tasks, and this machine knows where their YAML is.
    scores = hubmerge("eval", merged, "--split", "validation", "--json").data
    measured = {score["task"]: score["value"] for score in scores}
    assert measured == pytest.approx(dict(lock.pick().tasks))
    scores = hubmerge("eval", merged, "--split", "all", "--json").data
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    expected = harness(merged, ("ask_places", "ask_films"), chat / "tasks", **options)
    assert [score["value"] for score in scores] == pytest.approx(
        [expected[name]["exact_match,strict"] for name in ("ask_places", "ask_films")], abs=1e-6
    )
    card = hubmerge("card", merged, "--split", "all")
    assert card.code == 0, card.err
    assert "lm-eval:ask\\_places/chat" in card.out or "lm-eval:ask_places/chat" in card.out

    # Nothing is measured twice.
    trials = (running_home / "trials.jsonl").read_bytes()
    assert select(hubmerge, chat).code in (0, 4)
    again = read_lock(chat)
    assert again == dataclasses.replace(lock, command=again.command)
    assert (running_home / "trials.jsonl").read_bytes() == trials


def test_nothing_is_measured_for_what_cannot_be_selected_by(hubmerge: Command, chat: Path) -> None:
    write_tasks(chat / "more")
    choose = (
        "select", "harness/places", "harness/films", "--target", "ties", "--base", chat / "base",
        "--include-path", chat / "more", "--lock", chat / "none.lock",
    )  # fmt: skip
    result = hubmerge(*choose, "--tasks", "lm-eval:words,lm-eval:sums")
    assert result.code == 2
    assert "more is better, and lm-eval:words is measured by perplexity,none" in result.err
    assert "Write --metric with one of acc,none." in result.err
    result = hubmerge(*choose, "--tasks", "lm-eval:words,lm-eval:sums,lm-eval:choices")
    assert result.code == 2
    assert "does not name which of the 3 tasks it was trained for" in result.err
    assert not (chat / "none.lock").exists()


def test_what_cannot_be_measured_is_one_sentence_and_a_way_out(
    hubmerge: Command, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    tasks = tmp_path / "tasks"
    write_tasks(tasks)
    sums = yaml.safe_load((tasks / "sums.yaml").read_text())
    sampled = sums["generation_kwargs"] | {"do_sample": True, "temperature": 1.0}
    long = sums["generation_kwargs"] | {"max_gen_toks": 600}
    for name, changes in {
        "sampled": {"generation_kwargs": sampled},
        "long": {"generation_kwargs": long},
        "code": {"unsafe_code": True},
        "far": {"dataset_path": "owner/of-a-hub", "dataset_kwargs": None},
        "gone": {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "none.jsonl")}}},
        "field": {"doc_to_target": "{{answer + 1}}"},
    }.items():
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({**sums, "task": name, **changes}))
    group = {"group": "all_of_mine", "task": ["words", {"task": "sums"}]}
    (tasks / "group.yaml").write_text(yaml.safe_dump(group))
    for words, problem, hint in (
        (("lm-eval:wordz",), "Unknown task of lm_eval 'wordz'.", "Did you mean words"),
        (
            ("lm-eval:all_of_mine",),
            "is a group of 2 tasks",
            "Name tasks: lm-eval:words, lm-eval:sums.",
        ),
        (("lm-eval:sampled",), "draws its texts at random", "`do_sample: false`"),
        (("lm-eval:long",), "requested max tokens to generate (600)", "`include:`"),
        (("lm-eval:code",), "runs the code that a model writes", "in a sandbox"),
        (("lm-eval:far",), "needs the data set owner/of-a-hub, which is not on", "--model dummy"),
        (("lm-eval:gone",), "cannot read task lm-eval:gone", "from the current folder"),
        (("lm-eval:field",), "cannot read task lm-eval:field", "from the current folder"),
        (("lm-eval:sums", "--metric", "bleu"), "cannot be measured by bleu", "exact_match,strict"),
        (("lm-eval:choices", "--split", "all"), "has validation and test apart", "--split test"),
        (("lm-eval:words", "--split", "train"), "no rows for training", "--split test"),
        (("lm-eval:words/chat",), "asked in a chat template, which this model has not", "/chat"),
    ):
        result = hubmerge("eval", world / "gpt2", "--include-path", tasks, "--tasks", *words)
        assert result.code in (1, 2), result.out
        assert problem in result.err
        assert hint in result.err
        assert "Traceback" not in result.err


def test_a_model_that_is_not_finite_has_no_score(
    hubmerge: Command, world: Path, tmp_path: Path
) -> None:
    write_family(tmp_path / "broken", "gpt2")
    path = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).fill_(torch.nan)
    save_file(tensors, path, metadata={"format": "pt"})
    for task in ("words", "sums"):
        result = hubmerge(
            "eval", tmp_path / "broken", "--tasks", f"lm-eval:{task}", "--include-path",
            world / "tasks",
        )  # fmt: skip
        assert result.code == 1
        assert "The model's predictions are not finite." in result.err


@pytest.mark.slow
def test_workers_measure_the_same_and_the_evidence_is_measured_again(
    hubmerge: Command, api: HfApi, chat: Path
) -> None:
    api.create_repo("harness/base", exist_ok=True)
    api.upload_folder(repo_id="harness/base", folder_path=chat / "base")
    names = "lm-eval:ask_places/chat,lm-eval:ask_films/chat"
    words = (
        "select", "harness/places", "harness/films", "--target", "ties", "--budget", "6", "--base",
        "harness/base", "--tasks", names, "--include-path", chat / "tasks", "--workers", "2",
        "--lock", chat / "workers.lock",
    )  # fmt: skip
    result = hubmerge(*words)
    assert result.code in (0, 4), result.err
    result = hubmerge("verify", chat / "workers.lock", "--evidence")
    assert result.code == 0, result.err + result.out
