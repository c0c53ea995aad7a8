"""Three lines in two scripts, then `hubmerge select` and a merge that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubmerge import PushSteps
from tests.callbacks.builders import (
    QUIET,
    KeepCopies,
    load,
    make_trainer,
    published_manifest,
    published_weights,
    tags,
)
from tests.command_line import run_command

QUESTIONS = {"cats": ("cat", "dog"), "dogs": ("dog", "cat")}


def write_task(folder: Path, name: str) -> tuple[Path, list[dict[str, str]]]:
    """A task with choices, and its training rows."""
    right, wrong = QUESTIONS[name]
    rows = [
        {"question": f"{name} {number}", "right": f" {right}", "wrong": f" {wrong}"}
        for number in range(24)
    ]
    folder.mkdir()
    for split in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    yaml = folder.with_suffix(".yaml")
    yaml.write_text(
        f"name: {name}\nkind: target\ndata: {{path: {folder.name}}}\n"
        'prompt: "{{ question }}"\ntarget: "{{ right }}"\nmetric: exact_match\n'
        "max_new_tokens: 4\n"
    )
    return yaml, rows


def train_on(base: Path, rows: list[dict[str, str]], out: Path, steps: PushSteps) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    trainer = make_trainer(load(base), out, [steps], tokenizer=base, max_steps=16)
    texts = [row["question"] + row["right"] + tokenizer.eos_token for row in rows]
    encoded = [tokenizer(text)["input_ids"][:12] for text in texts]
    length = min(map(len, encoded))
    trainer.train_dataset = [{"input_ids": ids[:length], "labels": ids[:length]} for ids in encoded]
    trainer.train()


@pytest.mark.slow
def test_experts_of_two_scripts_are_selected_merged_and_loaded(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    repos = []
    for name in QUESTIONS:
        yaml, rows = write_task(tmp_path / name, name)
        repos.append(f"{repo}-{name}")
        steps = PushSteps(to=repos[-1], hub="local", task=yaml)
        train_on(base, rows, tmp_path / f"out-{name}", steps)
        assert published_manifest(api, repos[-1], 16, tmp_path / f"m-{name}").task_name == name
        assert api.file_exists(repos[-1], "task.yaml", revision="step8")
    assert sentences == []

    listed = run_command("steps", *repos, "--json")
    assert listed.exit_code == 0, listed.stderr
    assert {step["task"] for step in json.loads(listed.stdout)} == {*QUESTIONS}
    lock, merged = tmp_path / "hubmerge.lock", tmp_path / "merged"
    chosen = run_command(
        "select", *repos, "--target", "task_arithmetic", "--budget", 6, "--lock", lock
    )
    assert chosen.exit_code in (0, 4), chosen.stderr  # 4: no gain beyond noise
    done = run_command("merge", "--lock", lock, "--base", base, "--out", merged)
    assert done.exit_code == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(merged)
    ids = AutoTokenizer.from_pretrained(merged)("cats 1", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(ids).logits).all()
    card = run_command("card", merged)
    assert card.exit_code == 0, card.stderr


@pytest.mark.slow
def test_1024_steps_are_11_tags(base: Path, tmp_path: Path, api: HfApi, repo: str) -> None:
    copies: Any = KeepCopies()
    keep, wanted = copies.on_step_end, {2**k for k in range(11)}

    def keep_some(args: Any, state: Any, control: Any, **objects: Any) -> None:
        if state.global_step in wanted:
            keep(args, state, control, **objects)

    copies.on_step_end = keep_some
    steps = PushSteps(to=repo, hub="local")
    options = QUIET | {"max_steps": 1024, "logging_steps": 1000}
    make_trainer(load(base), tmp_path, [copies, steps], **options).train()
    assert published_weights(api, repo) == {step: copies.weights[step] for step in sorted(wanted)}
    assert len(tags(api, repo)) == 11
