"""A script for two processes: loops of torch alone, with replicas and with sharded weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hubmerge import PushSteps
from tests.callbacks.builders import load, token_rows

STEPS = 4


def train(model: nn.Module, repo: str, base: Path, resumed_at: int = 0) -> dict[int, str]:
    """Four updates on rows of each process; returns the commits, which the main process knows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = token_rows()[distributed.get_rank() :: 2]
    steps = PushSteps(to=repo, push_every="2^k", base=str(base))
    with steps.loop(model, steps=STEPS, resumed_at=resumed_at) as loop:
        for number in range(resumed_at + 1, STEPS + 1):
            batch: Any = {name: values[None] for name, values in rows[number].items()}
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loop.step(number)
    return loop.commits


def main(base: Path, out: Path, repo: str) -> None:
    distributed.init_process_group("gloo")
    replicas = DistributedDataParallel(load(base))
    commits = {"replicas": train(replicas, f"{repo}-replicas", base)}
    model = load(base)
    for layer in model.model.layers:
        fully_shard(layer)
    sharded = fully_shard(model)
    commits["sharded"] = train(sharded, f"{repo}-sharded", base)
    commits["again"] = train(sharded, f"{repo}-sharded", base, resumed_at=STEPS)
    (out / f"commits-{distributed.get_rank()}.json").write_text(json.dumps(commits))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
