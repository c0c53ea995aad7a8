"""Runs of TRL and of sentence-transformers, made by their own trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import run_command
from tests.trainer_runs.conftest import ARGUMENTS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("running_hub")]

WORDS = ["<unk>", "<pad>", "<eos>", "a", "b", "c", "d"]
FEW = {**ARGUMENTS, "max_steps": 2, "save_steps": 1, "eval_steps": 1}


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )


def plan(run: Path) -> dict[str, Any]:
    done = run_command("publish", run, "--to", "demo/planned", "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_trl(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    import peft
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    prompts = Dataset.from_dict({"prompt": ["a b"] * 4, "completion": [" c d"] * 4})
    tuned: Any = SFTTrainer(
        str(base),
        SFTConfig(str(tmp_path / "sft"), **FEW),
        train_dataset=prompts,
        eval_dataset=prompts,
        processing_class=make_tokenizer(),
        peft_config=peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]),
    )
    tuned.train()
    tuned.save_model()
    found = plan(tmp_path / "sft")
    assert found["steps"] == [1, 2]
    assert found["curve"] == "eval_mean_token_accuracy"
    assert found["base"] == str(base)
    assert found["tuning"]["rank"] == 2
    assert "The model at the root has the weights of checkpoint-2." in found["notes"]
    pairs = Dataset.from_dict({"prompt": ["a b"] * 4, "chosen": [" c"] * 4, "rejected": [" d"] * 4})
    preferred: Any = DPOTrainer(
        str(base),
        args=DPOConfig(str(tmp_path / "dpo"), **FEW),
        train_dataset=pairs,
        eval_dataset=pairs,
        processing_class=make_tokenizer(),
    )
    preferred.train()
    found = plan(tmp_path / "dpo")
    assert found["curve"] == "eval_rewards/accuracies"
    assert found["tuning"] == {"tune": "full"}


def test_sentence_transformers(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
        models,
    )
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    network = BertModel(BertConfig(num_attention_heads=2, vocab_size=len(WORDS), **shape))
    network.save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    model = SentenceTransformer(
        modules=[models.Transformer(str(tmp_path / "bert")), models.Pooling(16)], device="cpu"
    )
    pairs = Dataset.from_dict({"anchor": ["a b", "c d"] * 2, "positive": ["a", "c"] * 2})
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(str(tmp_path / "run"), **FEW),
        train_dataset=pairs,
        eval_dataset=pairs,
        loss=losses.MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    model.save_pretrained(str(tmp_path / "run" / "final"))
    found = plan(tmp_path / "run")
    assert found["steps"] == [1, 2]
    assert found["curve"] == "exp(-eval_loss)"
    assert found["left_out"] == [{"name": "final", "reason": "a model without a step"}]
    done = run_command("publish", tmp_path / "run", "--to", "demo/embedder", "--json")
    assert done.exit_code == 0, done.stderr
