"""A Trainer with PushSteps publishes every due step with the bytes that it had."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback

from hubmerge import PushSteps
from hubmerge.errors import HubmergeError
from tests.callbacks.builders import (
    STEPS,
    KeepCopies,
    load,
    make_trainer,
    published_manifest,
    published_weights,
    tags,
)


def test_every_step_is_tagged_with_its_bytes(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    copies, steps = KeepCopies(), PushSteps(to=repo, hub="local", evaluate=True)
    trainer = make_trainer(load(base), tmp_path / "out", [copies, steps], tokenizer=base)
    trainer.train()
    assert published_weights(api, repo) == {step: copies.weights[step] for step in STEPS}
    assert {f"step{step}": commit for step, commit in steps.commits.items()} == tags(api, repo)
    assert sentences == []
    assert list((tmp_path / "out").glob("checkpoint-*")) == []

    manifest = published_manifest(api, repo, 16, tmp_path / "manifest")
    assert (manifest.kind, manifest.step, manifest.last_step) == ("expert", 16, 16)
    assert (manifest.layout, manifest.base.name) == ("transformers", str(base))
    assert [point.step for point in manifest.validation] == list(STEPS)
    logged = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert [p.accuracy for p in manifest.validation] == [e["eval_accuracy"] for e in logged]
    losses = {str(entry["step"]): entry["eval_loss"] for entry in logged}
    recorded = manifest.training["evaluations"]
    assert {step: metrics["loss"] for step, metrics in recorded.items()} == losses
    assert manifest.norms is not None
    assert manifest.norms.model > 0
    assert manifest.training["batch"] == 2
    assert manifest.training["lr"] == 5e-3

    first = published_manifest(api, repo, 1, tmp_path / "first")
    assert [point.step for point in first.validation] == [1]
    assert first.run == manifest.run
    assert "trainer_state.json" not in first.files
    assert "training_args.bin" not in first.files
    folder = api.snapshot_download(repo, revision="step4", local_dir=tmp_path / "step4")
    assert len(AutoTokenizer.from_pretrained(folder)) == len(AutoTokenizer.from_pretrained(base))
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size > 0


def test_a_script_that_runs_again_pushes_nothing_twice(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    commits = []
    for _ in range(2):
        steps = PushSteps(to=repo, push_every=[4, 8], hub="local")
        make_trainer(load(base), tmp_path, [steps], max_steps=9).train()
        commits.append([commit.commit_id for commit in api.list_repo_commits(repo)])
    assert commits[0] == commits[1]
    assert list(tags(api, repo)) == ["step4", "step8", "step9"]
    assert sentences == []


def test_a_resumed_run_saves_the_step_that_its_checkpoint_is_ahead_of(
    base: Path, tmp_path: Path, api: HfApi, repo: str, home: Path
) -> None:
    copies, steps = KeepCopies(), PushSteps(to=repo, push_every=2, hub="local")
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(load(base), tmp_path, [copies, steps], **options).train()
    expected, saved = published_weights(api, repo), Path(steps.folder or "")
    assert expected == {step: copies.weights[step] for step in (2, 4)}

    api.delete_repo(repo)  # a Hub that saw nothing, and a disk that has the checkpoint alone
    shutil.rmtree(saved)
    resumed = make_trainer(load(base), tmp_path, [PushSteps(repo, 2, hub="local")], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert published_weights(api, repo) == expected


def test_another_run_is_not_mixed_with_the_steps_that_are_there(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    make_trainer(load(base), tmp_path, [PushSteps(repo, 2, hub="local")], max_steps=2).train()
    before = published_weights(api, repo)
    other = PushSteps(repo, 2, hub="local")
    trainer = make_trainer(load(base), tmp_path, [other], max_steps=2, seed=7)
    assert trainer.train().global_step == 2
    assert published_weights(api, repo) == before
    refused, left = sentences
    assert "belongs to another run" in refused
    assert "Choose another repository with to=" in refused
    assert f"hubmerge publish {other.folder}/steps --to OTHER/REPOSITORY --hub local" in left
    assert {path.name for path in (other.folder / "steps").iterdir()} == {"step2"}


def test_a_run_that_does_not_repeat_its_saved_steps_goes_on_beside_them(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    """The data are others, which no argument of the Trainer shows."""
    first = PushSteps(repo, 2, hub="local")
    make_trainer(load(base), tmp_path, [first], max_steps=2).train()
    before, folder = published_weights(api, repo), first.folder
    copies, second = KeepCopies(), PushSteps(repo, 2, hub="local")
    trainer = make_trainer(load(base), tmp_path, [copies, second], max_steps=4)
    trainer.args.max_steps, trainer.train_dataset = 2, trainer.train_dataset[::-1]
    trainer.train()
    assert published_weights(api, repo) == before
    assert "does not repeat step2" in sentences[0]
    assert second.folder == folder.with_name(f"{folder.name}-2")


def test_a_folder_with_another_run_is_left_alone(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    out = tmp_path / "run"
    for number, rate in enumerate((1e-3, 1e-2)):
        steps = PushSteps(f"{repo}-{number}", [1], hub="local", out=out)
        make_trainer(load(base), tmp_path, [steps], max_steps=1, learning_rate=rate).train()
    assert "does not repeat the steps of run" in sentences[0]
    assert steps.folder == out.with_name("run-2")
    assert list(tags(api, f"{repo}-0")) == ["step1"]
    assert not api.repo_exists(f"{repo}-1")


def test_steps_that_a_run_does_not_reach_are_a_sentence(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    make_trainer(load(base), tmp_path, [PushSteps(repo, [1, 64], hub="local")], max_steps=2).train()
    assert sentences == ["The run ends at step 2, before step 64 is due."]
    assert list(tags(api, repo)) == ["step1", "step2"]


def test_a_model_without_a_name_brings_its_base(
    base: Path, tmp_path: Path, api: HfApi, repo: str
) -> None:
    config = load(base).config
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config)
    start = KeepCopies()
    steps = PushSteps(repo, hub="local")
    make_trainer(model, tmp_path, [start, steps], max_steps=1).train()
    manifest = published_manifest(api, repo, 1, tmp_path / "manifest")
    assert manifest.base.name == str(steps.folder / "base")
    assert (steps.folder / "base" / "model.safetensors").is_file()
    assert manifest.norms is not None
    assert 0 < manifest.norms.model < 10


def test_a_base_by_name_is_that_of_the_hub_or_of_the_cache(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    """transformers may have loaded it from another Hub than the one that gets the steps."""
    name = f"{repo}-base"
    api.create_repo(name)
    commit = api.upload_folder(repo_id=name, folder_path=base).oid
    model = load(base)
    model.config._name_or_path = name
    make_trainer(model, tmp_path, [PushSteps(f"{repo}-a", [1], hub="local")], max_steps=1).train()
    manifest = published_manifest(api, f"{repo}-a", 1, tmp_path / "a")
    assert (manifest.base.sha, manifest.base.name) == (commit, name)

    cached = api.snapshot_download(name, cache_dir=constants.HF_HUB_CACHE)
    api.delete_repo(name)
    make_trainer(model, tmp_path, [PushSteps(f"{repo}-b", [1], hub="local")], max_steps=1).train()
    local = published_manifest(api, f"{repo}-b", 1, tmp_path / "b")
    assert (local.base.name, local.base.digest) == (cached, manifest.base.digest)

    model.config._name_or_path = "nobody/has-it"
    lost = PushSteps(f"{repo}-c", [1], hub="local")
    make_trainer(model, tmp_path, [lost], max_steps=1).train()
    assert "nobody/has-it" in sentences[0]
    again = PushSteps(f"{repo}-c", [1], hub="local", base=base)  # the weights differ by now
    make_trainer(model, tmp_path, [again], max_steps=1).train()
    assert "does not repeat step1" in sentences[-1]


@pytest.mark.parametrize("strategy", ["steps", pytest.param("epoch", marks=pytest.mark.slow)])
def test_a_run_that_stops_early_publishes_its_last_step_and_not_its_best(
    base: Path, tmp_path: Path, api: HfApi, repo: str, strategy: str
) -> None:
    copies = KeepCopies()
    steps = PushSteps(repo, [1], hub="local")
    trainer = make_trainer(
        load(base),
        tmp_path,
        [copies, steps, EarlyStoppingCallback(early_stopping_patience=1)],
        max_steps=64,
        per_device_train_batch_size=8,
        eval_strategy=strategy,
        save_strategy=strategy,
        eval_steps=3,
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so the first evaluation stays the best
    )
    trainer.train()
    last = trainer.state.global_step
    assert 1 < last < 64
    assert published_weights(api, repo) == {step: copies.weights[step] for step in (1, last)}
    manifest = published_manifest(api, repo, last, tmp_path / "manifest")
    assert (manifest.training["stopped"], manifest.last_step) == ("early", last)


def test_an_evaluation_without_data_is_a_sentence(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    trainer = make_trainer(load(base), tmp_path, [PushSteps(repo, hub="local", evaluate=True)])
    trainer.eval_dataset, trainer.args.max_steps = None, 2
    trainer.train()
    assert list(tags(api, repo)) == ["step1", "step2"]
    assert sentences == [
        "evaluate=True has nothing to evaluate on: the Trainer has no eval_dataset."
    ]


def test_two_callbacks_of_one_run_do_not_meet(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    both = [PushSteps(to, hub="local") for to in (repo, repo, f"{repo}-2")]
    make_trainer(load(base), tmp_path, both, max_steps=2).train()
    assert list(tags(api, repo)) == list(tags(api, f"{repo}-2")) == ["step1", "step2"]
    assert len(sentences) == 1
    assert "another PushSteps" in sentences[0]


@pytest.mark.parametrize(("arguments", "words"), [
    ({"to": "nobody"}, "repository id"),
    ({"to": "me/x", "push_every": "3^"}, "not a rule"),
    ({"to": "me/x", "push_every": [0]}, "not a rule"),
    ({"to": "me/x", "push_every": []}, "not a rule"),
    ({"to": "me/x", "hub": "remote"}, "not a Hub"),
    ({"to": "me/x", "task": "nothing-like-it"}, "Unknown task"),
    ({"to": "me/x", "base": "a b"}, "not a repository id"),
    ({"to": "me/x", "patience_s": -1}, "number of seconds"),
    ({"to": "nobody", "push_every": "x", "hub": "y"}, "3 problems"),
], ids=str)  # fmt: skip
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(HubmergeError, match=words):
        PushSteps(**arguments)
