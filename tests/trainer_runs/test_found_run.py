"""What is found in the folders of runs, before anything is published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.hub.client import Hub
from hubmerge.progress import no_progress
from hubmerge.refs import ModelRef
from hubmerge.trainer_runs.found_run import FoundRun, inspect_run
from hubmerge.trainer_runs.run_source import open_run_source
from tests.trainer_runs.layouts import (
    adapter,
    axolotl,
    checkpoint,
    deepspeed,
    early_stopping,
    fsdp,
    history,
    llama_factory,
    state,
    weights,
)

NO_HUB = Hub("http://localhost:1", lambda: None, Path("/nowhere"), "no Hub")
LOG = history({2: 1.0, 4: 0.5, 6: 0.75, 8: 0.8})


def inspect(run: Path, curve: str | None = None, last_step: int | None = None) -> FoundRun:
    return inspect_run(open_run_source(NO_HUB, ModelRef(path=run), no_progress), curve, last_step)


def steps(found: FoundRun) -> list[int]:
    return [checkpoint.step for checkpoint in found.checkpoints]


def test_marks_notes_and_states(tmp_path: Path) -> None:
    fields = {"best_global_step": 4, "best_metric": 0.5}
    for step in (4, 6, 8):
        checkpoint(tmp_path, step, LOG, **fields,
                   stateful_callbacks=early_stopping(step // 4))  # fmt: skip
    found = inspect(tmp_path)
    assert [found.marks(c) for c in found.checkpoints] == [
        ("best",), (), ("early stop", "last"),
    ]  # fmt: skip
    assert found.curve is not None
    assert found.curve.formula == "exp(-eval_loss)"
    assert [point.step for point in found.points(found.checkpoints[1])] == [2, 4, 6]
    assert found.notes == (
        "save_total_limit has removed the folders of 1 saved steps: 2.",
        "Left out: 12 files (96 bytes) of optimizer, scheduler and random states and other "
        "pickles, which only continued training needs.",
    )
    assert set(found.checkpoints[0].files) == {
        "config.json", "model.safetensors", "tokenizer.json", "trainer_state.json",
    }  # fmt: skip


def test_a_run_that_was_repeated(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, LOG)
    checkpoint(tmp_path, 4, history({2: 1.25, 4: 0.5}))
    found = inspect(tmp_path)
    assert any("disagree at step 2 (loss 2 and 2.5)" in note for note in found.notes)
    first, second = (found.points(c)[0].accuracy for c in found.checkpoints)
    assert first > second


def test_interrupted_checkpoints_are_left_out(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, LOG)
    for step in (4, 6):
        (checkpoint(tmp_path, step) / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint-6" / "tokenizer.json").unlink()
    weights(tmp_path / "tmp-checkpoint-8", 8)
    found = inspect(tmp_path)
    assert steps(found) == [2]
    assert dict(found.left_out) == {
        "tmp-checkpoint-8": "an unfinished checkpoint, which Trainer had not renamed yet",
        "checkpoint-4": "interrupted: it has no trainer_state.json, and its weights are not "
        "complete",
        "checkpoint-6": "interrupted: it has no trainer_state.json, and it lacks tokenizer.json",
    }


def test_a_whole_checkpoint_without_a_state_is_a_step(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, LOG)
    (checkpoint(tmp_path, 4) / "trainer_state.json").unlink()
    checkpoint(tmp_path, 6, LOG)
    found = inspect(tmp_path)
    assert steps(found) == [2, 4, 6]
    assert [point.step for point in found.points(found.checkpoints[1])] == [2, 4]


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (deepspeed, "only as shards of DeepSpeed", "checkpoint-4/zero_to_fp32.py"),
        (fsdp, "only as shards of FSDP", "accelerate merge-weights"),
    ],
)
def test_shards_are_refused_with_the_command(
    make: object, message: str, hint: str, tmp_path: Path
) -> None:
    make(tmp_path, 4)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message) as raised:
        inspect(tmp_path)
    assert hint in raised.value.hint


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    deepspeed(tmp_path, 2)
    pickled = checkpoint(tmp_path, 4)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as raised:
        inspect(tmp_path)
    assert len(raised.value.problems) == 2
    assert "hubmerge import" in raised.value.hint


def test_axolotl(tmp_path: Path) -> None:
    axolotl(tmp_path, 4)
    found = inspect(tmp_path)
    assert steps(found) == [4]
    assert {name for name, _ in found.left_out} == {"merged", "last_run_prepared"}
    assert "The model at the root has the weights of checkpoint-4." in found.notes
    settings = found.settings
    assert settings.seed == 7
    assert settings.tuning == {
        "tune": "lora", "rank": 1, "alpha": 2, "rslora": True, "dropout": 0.05,
    }  # fmt: skip
    assert settings.base is not None
    assert (settings.base.value, settings.base.where) == ("demo/base", "README.md")


def test_llama_factory(tmp_path: Path) -> None:
    llama_factory(tmp_path, (2, 4), 5)
    found = inspect(tmp_path)
    assert steps(found) == [2, 4, 5]
    assert found.checkpoints[-1].name == "(root)"
    assert set(found.checkpoints[-1].files) == {
        "model.safetensors", "trainer_state.json", "train_results.json", "all_results.json",
    }  # fmt: skip
    assert found.settings.seed == 11
    assert found.settings.base is not None
    assert (found.settings.base.value, found.settings.base.where) == (
        "demo/base", "training_args.yaml",
    )  # fmt: skip
    (tmp_path / "trainer_state.json").unlink()
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").unlink()
    found = inspect(tmp_path)
    assert steps(found) == [2, 4, 5]
    assert [point.step for point in found.points(found.checkpoints[-1])] == [2, 4, 5]


def test_the_model_at_the_root(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, LOG)
    weights(tmp_path, 8)
    found = inspect(tmp_path)
    assert steps(found) == [2]
    assert found.left_out == (
        ("(root)", "a model at the root: its step is not known. Write --last-step N to publish "
         "it as step N."),
    )  # fmt: skip
    assert steps(inspect(tmp_path, last_step=8)) == [2, 8]
    assert steps(inspect(tmp_path, last_step=2)) == [2]
    (tmp_path / "trainer_state.json").write_text(state(8, LOG))
    assert steps(inspect(tmp_path)) == [2, 8]
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert steps(inspect(tmp_path)) == [8]
    (tmp_path / "trainer_state.json").unlink()
    with pytest.raises(UsageError, match="no checkpoints that can be published"):
        inspect(tmp_path)


def test_adapters_name_their_base(tmp_path: Path) -> None:
    adapter(tmp_path, 2)
    found = inspect(tmp_path)
    assert found.settings.base is not None
    assert found.settings.base.value == "demo/base"
    assert found.checkpoints[0].files == (
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "trainer_state.json",
    )  # fmt: skip
