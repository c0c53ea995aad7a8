"""Loops in two processes without an Accelerator: replicas, and weights that are sharded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from hubmerge.server import ServerState
from tests.callbacks.builders import load, tags, token_rows
from tests.callbacks.loops import STEPS
from tests.callbacks.test_killed import TORCHRUN, run_script


def train_alone(base: Path) -> dict[str, torch.Tensor]:
    """The weights after the updates of `loops` in one process, on the rows of both."""
    model, rows = load(base), token_rows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(1, STEPS + 1):
        for rank in (0, 1):
            row = rows[rank::2][number]
            (model(**{name: values[None] for name, values in row.items()}).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


@pytest.mark.slow
def test_process_0_publishes_whole_weights(
    base: Path, tmp_path: Path, server: ServerState, api: HfApi, repo: str, python: Path
) -> None:
    script = ["-m", "tests.callbacks.loops", base, tmp_path, repo]
    done = run_script(python, [*TORCHRUN, *script], server.url, server.token)
    assert done.returncode == 0, done.stderr
    commits, others = (
        json.loads((tmp_path / f"commits-{rank}.json").read_text()) for rank in (0, 1)
    )
    assert others == {"replicas": {}, "sharded": {}, "again": {}}
    assert commits["again"].items() <= commits["sharded"].items()
    expected = train_alone(base)
    for kind in ("replicas", "sharded"):
        assert set(tags(api, f"{repo}-{kind}")) == {"step1", "step2", "step4"}
        assert set(commits[kind]) == {"1", "2", "4"}
        folder = Path(api.snapshot_download(f"{repo}-{kind}", revision="step4"))
        weights = load_file(folder / "model.safetensors")
        assert weights.keys() <= expected.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4)
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
