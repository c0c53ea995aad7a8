"""Extracted adapters in peft: merge_and_unload adds the best change of their rank to the base."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file

from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.extraction import extract
from hubmerge.weights.lora_file import AdapterFields, write_adapter
from hubmerge.weights.lora_modules import LoraModule, module_path
from hubmerge.weights.task_vector import TaskVector
from tests.compat.test_lora_peft import clip, gpt2, open_clip

TRUE_RANK = 2
MATRICES = {
    clip: ("q_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight"),
    open_clip: ("in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight"),
    gpt2: ("c_attn.weight", "c_proj.weight", "c_fc.weight"),
}


def best_approximation(change: Any, rank: int) -> Any:
    u, s, v = np.linalg.svd(change.double().numpy(), full_matrices=False)
    return torch.from_numpy((u[:, :rank] * s[:rank]) @ v[:rank]).float()


@pytest.mark.parametrize("rank", [1, TRUE_RANK, 3])
@pytest.mark.parametrize("make_model", list(MATRICES), ids=lambda make_model: make_model.__name__)
def test_peft_merges_the_extracted_change(
    make_model: Callable[[], Any], rank: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make_model()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    names = [name for name in before if name.endswith(MATRICES[make_model])]
    changes = {}
    for name in names:
        outputs, inputs = before[name].shape
        changes[name] = torch.randn(outputs, TRUE_RANK) @ torch.randn(TRUE_RANK, inputs) / 10
    after = {name: values + changes.get(name, 0) for name, values in before.items()}
    folders = []
    for folder, state in (("base", before), ("expert", after)):
        (tmp_path / folder).mkdir()
        plain = {name: values.clone().contiguous() for name, values in state.items()}
        save_file(plain, tmp_path / folder / "model.safetensors")
        folders.append(open_checkpoint(tmp_path / folder))
    modules = [
        LoraModule(module_path(name), name, before[name].shape, inputs_first=make_model is gpt2)
        for name in names
    ]
    extraction = extract(TaskVector(*folders), modules, rank)
    fields = AdapterFields("o/base", "a" * 40)
    write_adapter(tmp_path / "adapter", extraction.factors, rank, fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
        merged = loaded.merge_and_unload().state_dict()
    for name, values in before.items():
        change = (
            best_approximation(after[name] - values, rank) if name in changes else torch.zeros(())
        )
        assert torch.allclose(merged[name], values + change, atol=1e-5), name
    assert (extraction.shares.kept > 0.999999) == (rank >= TRUE_RANK)
