"""Adapters, SFTTrainer, SentenceTransformerTrainer and bare loops publish what they train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubmerge import PushSteps
from tests.callbacks.builders import (
    QUIET,
    STEPS,
    KeepCopies,
    load,
    make_trainer,
    published_manifest,
    published_weights,
    saved_weights,
    tags,
    token_rows,
)
from tests.models.builders import tiny_bert


def lora() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")


def test_of_an_adapter_only_the_adapter_is_published(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    copies = KeepCopies()
    model = get_peft_model(load(base), lora())
    make_trainer(model, tmp_path, [copies, PushSteps(repo, hub="local")], max_steps=2).train()
    assert published_weights(api, repo) == {step: copies.weights[step] for step in (1, 2)}
    assert [*published_weights(api, repo)[2]] == ["adapter_model.safetensors"]
    manifest = published_manifest(api, repo, 2, tmp_path / "manifest")
    assert (manifest.layout, manifest.base.name) == ("peft", str(base))
    settings = {key: manifest.training[key] for key in ("tune", "rank", "alpha", "target_modules")}
    assert settings == {"tune": "lora", "rank": 2, "alpha": 4, "target_modules": "q_proj"}
    assert manifest.norms is not None
    folder = api.snapshot_download(repo, revision="step2", local_dir=tmp_path / "step2")
    loaded = PeftModel.from_pretrained(load(base), folder)
    ids = torch.arange(5, 13)[None]
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    assert sentences == []


def test_an_adapter_of_a_model_without_a_name_knows_its_base(
    base: Path, tmp_path: Path, api: HfApi, repo: str
) -> None:
    config = load(base).config
    config._name_or_path = ""
    whole = AutoModelForCausalLM.from_config(config)
    start = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    steps = PushSteps(repo, hub="local")
    make_trainer(get_peft_model(whole, lora()), tmp_path, [steps], max_steps=1).train()
    saved = steps.folder / "base"
    assert load_file(saved / "model.safetensors").keys() == start.keys()
    assert all(torch.equal(load(saved).state_dict()[name], start[name]) for name in start)
    folder = api.snapshot_download(repo, revision="step1", local_dir=tmp_path / "step1")
    settings = json.loads(Path(folder, "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(saved)


@pytest.mark.slow
def test_sft_trainer(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_list([{"prompt": f"one and {n}", "completion": " two"} for n in range(16)])
    copies = KeepCopies()
    trainer = SFTTrainer(
        load(base),
        args=SFTConfig(
            str(tmp_path / "out"),
            max_steps=4,
            per_device_train_batch_size=2,
            max_length=32,
            **QUIET,
        ),
        train_dataset=rows,
        eval_dataset=rows.select(range(4)),
        processing_class=tokenizer,
        peft_config=lora(),
        callbacks=[copies, PushSteps(repo, hub="local", evaluate=True)],
    )
    trainer.train()
    assert published_weights(api, repo) == {step: copies.weights[step] for step in (1, 2, 4)}
    manifest = published_manifest(api, repo, 4, tmp_path / "manifest")
    assert manifest.command == f'PushSteps("{repo}") in SFTTrainer'
    assert manifest.training["tune"] == "lora"
    assert [point.step for point in manifest.validation] == [1, 2, 4]
    logged = [entry for entry in trainer.state.log_history if "eval_mean_token_accuracy" in entry]
    assert manifest.validation[-1].accuracy == logged[-1]["eval_mean_token_accuracy"]
    assert "tokenizer.json" in manifest.files
    assert sentences == []


@pytest.mark.slow
def test_sentence_transformer_trainer(
    tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    """All modules are published, those with weights of their own, too."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.models import Dense, Pooling, Transformer

    tiny_bert(tmp_path / "bert")
    inner = Transformer(str(tmp_path / "bert"), max_seq_length=16)
    pooling = Pooling(inner.get_embedding_dimension())
    model = SentenceTransformer(
        modules=[inner, pooling, Dense(inner.get_embedding_dimension(), 8)], device="cpu"
    )
    rows = Dataset.from_list([{"anchor": f"one {n}", "positive": f"two {n}"} for n in range(8)])
    copies = KeepCopies()
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, **QUIET
        ),
        train_dataset=rows,
        eval_dataset=rows,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[copies, PushSteps(repo, hub="local", evaluate=True)],
    ).train()
    expected = {step: copies.weights[step] for step in (1, 2)}
    assert published_weights(api, repo) == expected
    assert [*expected[2]] == ["model.safetensors", "2_Dense/model.safetensors"]
    manifest = published_manifest(api, repo, 2, tmp_path / "manifest")
    assert manifest.base.name == str(tmp_path / "bert")
    assert {"modules.json", "1_Pooling/config.json"} <= manifest.files.keys()
    folder = api.snapshot_download(repo, revision="step2", local_dir=tmp_path / "step2")
    again = SentenceTransformer(folder, device="cpu").encode("one two")
    assert np.array_equal(again, model.encode("one two"))
    assert sentences == []


def test_a_loop_of_ones_own(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    accelerator, expected = Accelerator(cpu=True), {}
    model = load(base)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-2))
    rows = token_rows()
    push = PushSteps(repo, hub="local")
    with push.loop(wrapped, accelerator, steps=16, settings={"lr": 1e-2, "seed": 0}) as steps:
        for number in range(1, 17):
            train_step(wrapped, optimizer, accelerator, rows[number])
            if number in STEPS:
                expected[number] = saved_weights(model)
            if number == 3:  # reported in two calls
                steps.step(number, {"accuracy": number / 16})
                steps.step(number, {"loss": 1.0, "lr": 1e-2})
            else:
                steps.step(number, {"loss": 1.0, "lr": 1e-2, "accuracy": number / 16})
    assert published_weights(api, repo) == expected
    assert sorted(steps.commits) == list(STEPS)
    manifest = published_manifest(api, repo, 8, tmp_path / "manifest")
    assert [p.accuracy for p in manifest.validation] == [n / 16 for n in range(1, 9)]
    assert (manifest.validation[-1].lr, manifest.validation[-1].loss) == (1e-2, 1.0)
    assert manifest.training["seed"] == 0
    assert sentences == []


@pytest.mark.slow
def test_a_loop_that_goes_on_keeps_its_curve_and_repeats_no_step(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    model, checkpoint = load(base), dict[str, torch.Tensor]()
    for numbers, resumed_at in (((1, 2, 3), 0), ((3, 4), 2)):
        if resumed_at:
            model.load_state_dict(checkpoint)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with PushSteps(repo, hub="local").loop(model, resumed_at=resumed_at) as steps:
            for number in numbers:
                train_step(model, optimizer, None, token_rows()[number])
                if number == 2:
                    checkpoint = {n: tensor.clone() for n, tensor in model.state_dict().items()}
                steps.step(number, {"accuracy": number / 8})
    assert list(tags(api, repo)) == ["step1", "step2", "step3", "step4"]
    manifest = published_manifest(api, repo, 4, tmp_path / "manifest")
    assert [point.step for point in manifest.validation] == [1, 2, 3, 4]
    assert sentences == []


def test_a_loop_that_breaks_publishes_what_it_saved(
    base: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    model = load(base)

    def break_off() -> None:
        with PushSteps(repo, hub="local").loop(model) as steps:
            steps.step(1)
            steps.step(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert list(tags(api, repo)) == ["step1"]
    assert sentences == []


class ShardedThatFails:
    """An Accelerator of sharded weights whose processes do not reach each other."""

    distributed_type, is_main_process = "FSDP", True

    def unwrap_model(self, model: Any, keep_torch_compile: bool) -> Any:
        return model

    def get_state_dict(self, model: Any) -> Any:
        raise RuntimeError("connection closed by peer")


def test_weights_that_cannot_be_gathered_stop_no_loop(
    base: Path, repo: str, sentences: list[str]
) -> None:
    push = PushSteps(repo, hub="local", base=base)
    with push.loop(load(base), ShardedThatFails()) as steps:
        steps.step(1)
    assert sentences == ["step1 is missing: it could not be saved (connection closed by peer)."]


def train_step(model: Any, optimizer: Any, accelerator: Any, row: dict[str, Any]) -> None:
    loss = model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss
    accelerator.backward(loss) if accelerator else loss.backward()
    optimizer.step()
    optimizer.zero_grad()
