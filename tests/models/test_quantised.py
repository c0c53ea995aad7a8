"""A base in 4 bits under an adapter, where bitsandbytes is installed; it quantises on CPUs too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hubmerge.models.adapter import add_adapter, apply_adapter
from hubmerge.models.loading import load_model
from hubmerge.models.quantised import quantise_to_4bit
from hubmerge.specs import TrainSpec
from tests.models.builders import tiny_llama


def test_an_adapter_on_a_base_in_4_bits(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    tiny_llama(tmp_path / "base")
    model: Any = load_model(tmp_path / "base", "target")
    tokens = torch.tensor([[1, 2, 3]])
    expected = model.module(input_ids=tokens).logits
    quantise_to_4bit(model)
    spec = TrainSpec(base="a/b", task="t", to="me/t", tune="lora", rank=2, load_in="4bit")
    adapted = add_adapter(model, spec, "a/b", "0" * 40)
    adapted.peft_model.to("cpu")  # as Accelerate moves it to a GPU
    layers = [m for m in adapted.peft_model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert layers
    assert all(layer.weight.dtype == torch.uint8 for layer in layers)
    logits = adapted.peft_model(input_ids=tokens).logits
    assert 0 < (logits - expected).abs().max() < expected.abs().max()
    logits.sum().backward()
    trained = [p for p in adapted.peft_model.parameters() if p.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    (tmp_path / "adapter").mkdir()
    adapted.save(tmp_path / "adapter")
    apply_adapter(load_model(tmp_path / "base", "target"), tmp_path / "adapter")
