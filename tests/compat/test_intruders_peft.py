"""Our intruder dimensions compared with peft's reduction of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora import intruders
from safetensors.torch import save_file

from hubmerge.merging.softening import MAX_COSINE, TOP_VECTORS, survey_softening
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.task_vector import TaskVector

RANK = 4


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = torch.nn.Linear(48, 64, bias=False)

    def forward(self, x: object) -> object:
        return self.q(x)


@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize("size", [0.02, 0.2])
def test_reduction_equals_peft(factor: float, size: float, tmp_path: Path) -> None:
    """peft truncates the change to the rank of the adapter, in float32; for comparison so do we."""
    torch.manual_seed(0)
    net = Net()
    (tmp_path / "base").mkdir()
    save_file(net.state_dict(), tmp_path / "base" / "model.safetensors")
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["q"])
    model = peft.get_peft_model(net, config)
    layer = model.base_model.model.q
    for part in (layer.lora_A, layer.lora_B):
        torch.nn.init.normal_(part["default"].weight, std=size)
    model.save_pretrained(tmp_path / "adapter")

    base = open_checkpoint(tmp_path / "base")
    delta = TaskVector(base, open_checkpoint(tmp_path / "adapter")).delta("q.weight")
    tensors = [("q.weight", delta, base.read("q.weight"))]
    softening = survey_softening(lambda: tensors, 1.0, factor)
    ours = softening.soften("q.weight", delta)
    assert bool(softening.intruders) == (size == 0.2)

    intruders.reduce_intruder_dimension(
        model,
        top_k=TOP_VECTORS,
        threshold_epsilon=MAX_COSINE,
        mitigation_lambda=factor,
        logging_sink=None,
    )
    theirs = layer.get_delta_weight("intruder_reduced").detach().numpy()
    left, sizes, right = np.linalg.svd(ours.astype(np.float64), full_matrices=False)
    truncated = left[:, :RANK] * sizes[:RANK] @ right[:RANK]
    np.testing.assert_allclose(truncated, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
