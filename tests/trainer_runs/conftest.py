"""One embedded Hub for all tests, which is the one of the command line, and a run of Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import HfApi

from hubmerge.server import ServerState, lease

SHAPE: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32,
}  # fmt: skip
ROWS = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4], "attention_mask": [1] * 4}] * 4
ARGUMENTS: dict[str, Any] = {
    "max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "eval_strategy": "steps",
    "eval_steps": 2, "logging_steps": 1, "eval_on_start": True, "report_to": [], "use_cpu": True,
    "disable_tqdm": True, "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture(scope="session")
def server(running_home: Path) -> Iterator[ServerState]:
    with lease(running_home / "hub") as state:
        yield state


@pytest.fixture(scope="session")
def api(server: ServerState) -> HfApi:
    return HfApi(endpoint=server.url, token=server.token)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, api: HfApi) -> Path:
    """A tiny Llama, on the Hub as demo/base."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).save_pretrained(folder)
    api.create_repo("demo/base")
    api.upload_folder(repo_id="demo/base", folder_path=folder)
    return folder


@pytest.fixture(scope="session")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Trainer leaves: checkpoints 2 and 4, the last model, its state and a card; unchanged."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("run")
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(str(run), load_best_model_at_end=True, **ARGUMENTS),
        train_dataset=ROWS,  # type: ignore[arg-type]
        eval_dataset=ROWS,  # type: ignore[arg-type]
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    return run
