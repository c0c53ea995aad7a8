"""Folders as Trainer, axolotl, LLaMA-Factory, DeepSpeed and FSDP leave them, with tiny weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
BASE = "demo/base"


def history(losses: Mapping[int, float], **metrics: Mapping[int, float]) -> list[dict[str, Any]]:
    """A log_history with an eval_loss at each step, and metrics under `eval_` names."""
    entries: list[dict[str, Any]] = []
    for step, loss in losses.items():
        others = {f"eval_{name}": values[step] for name, values in metrics.items()}
        times = {"eval_runtime": 0.5, "eval_samples_per_second": 16.0, "epoch": step / 8}
        entries.append({"step": step, "loss": 2 * loss, "learning_rate": 1e-3 / step})
        entries.append({"step": step, "eval_loss": loss, **others, **times})
    return entries


def state(step: int, log: list[dict[str, Any]] | None = None, **fields: Any) -> str:
    """A trainer_state.json, with the keys that Trainer sorts."""
    values = {
        "best_global_step": None, "best_metric": None, "best_model_checkpoint": None,
        "epoch": 1.0, "eval_steps": 2, "global_step": step, "max_steps": 8, "save_steps": 2,
        "logging_steps": 1, "num_train_epochs": 1, "train_batch_size": 2, "trial_name": None,
        "log_history": [e for e in log or [] if e["step"] <= step], "stateful_callbacks": {},
    }  # fmt: skip
    return json.dumps({**values, **fields}, indent=2, sort_keys=True)


def early_stopping(counter: int, patience: int = 2) -> dict[str, Any]:
    """The callback as Trainer saves it."""
    return {
        "EarlyStoppingCallback": {
            "args": {"early_stopping_patience": patience, "early_stopping_threshold": 0.0},
            "attributes": {"early_stopping_patience_counter": counter},
        }
    }


def weights(folder: Path, step: int, name: str = "model.safetensors") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.full((2, 2), step, np.float32)}, folder / name, {"format": "pt"})


def checkpoint(
    run: Path, step: int, log: list[dict[str, Any]] | None = None, **fields: Any
) -> Path:
    """A checkpoint folder of Trainer, with optimizer, scheduler and random states as pickles."""
    folder = run / f"checkpoint-{step}"
    weights(folder, step)
    (folder / "config.json").write_text('{"model_type": "test"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "trainer_state.json").write_text(state(step, log, **fields))
    for name in STATES:
        (folder / name).write_bytes(b"\x80\x04pickle")
    return folder


def deepspeed(run: Path, step: int) -> Path:
    """A checkpoint of ZeRO-3 without gathered weights."""
    folder = checkpoint(run, step)
    (folder / "model.safetensors").unlink()
    shards = folder / f"global_step{step}"
    shards.mkdir()
    for name in ("zero_pp_rank_0_mp_rank_00_model_states.pt",
                 "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):  # fmt: skip
        (shards / name).write_bytes(b"\x80\x04")
    (folder / "latest").write_text(f"global_step{step}")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit('never run')")
    return folder


def fsdp(run: Path, step: int) -> Path:
    """A checkpoint of FSDP with a sharded state."""
    folder = checkpoint(run, step)
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (folder / name).mkdir()
        (folder / name / "__0_0.distcp").write_bytes(b"\0")
        (folder / name / ".metadata").write_bytes(b"\0")
    return folder


def adapter(run: Path, step: int, base: str = BASE) -> Path:
    """A checkpoint of a LoRA, as peft saves it."""
    folder = checkpoint(run, step)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    tensors = {
        f"base_model.model.w.lora_{side}.weight": np.full((1, 2) if side == "A" else (2, 1), step,
                                                          np.float32) for side in "AB"
    }  # fmt: skip
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": base, "peft_type": "LORA", "r": 1, "lora_alpha": 2,
              "lora_dropout": 0.05, "use_rslora": True, "target_modules": ["w"]}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def axolotl(run: Path, step: int) -> None:
    """The output folder of axolotl: checkpoints, the final adapter, the merged model, the card."""
    folder = adapter(run, step, base="/path/of/another/machine")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (run / name).write_bytes((folder / name).read_bytes())
    weights(run / "merged", step + 1)
    (run / "last_run_prepared").mkdir()
    (run / "debug.log").write_text("...")
    (run / "README.md").write_text(
        "---\nlibrary_name: peft\nbase_model: demo/base\n---\n\n<details><summary>See axolotl "
        "config</summary>\n\naxolotl version: `0.9.0`\n```yaml\nbase_model: demo/base\n"
        "adapter: lora\nseed: 7\n```\n</details>\n"
    )


def llama_factory(run: Path, steps: tuple[int, ...], last: int) -> None:
    """The output folder of LLaMA-Factory: logs and results beside checkpoints and last model."""
    log = history({step: 1 / step for step in (*steps, last)})
    for step in steps:
        checkpoint(run, step, log)
    weights(run, last)
    (run / "trainer_state.json").write_text(state(last, log))
    lines = [
        {"current_steps": step, "total_steps": last, "eval_loss": 1 / step, "lr": 1e-4,
         "epoch": step / last, "percentage": 100 * step / last, "elapsed_time": "0:00:01"}
        for step in (*steps, last)
    ]  # fmt: skip
    (run / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("train_results.json", "all_results.json"):
        (run / name).write_text('{"epoch": 1.0, "train_loss": 0.5}')
    (run / "training_args.yaml").write_text("model_name_or_path: demo/base\nseed: 11\n")
    (run / "training_args.bin").write_bytes(b"\x80\x04")
