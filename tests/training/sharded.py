"""Program for two processes: three updates with sharded weights; rank 0 writes result.json.

Accelerate shards only on accelerators; torch's `fully_shard`, which it uses there, works on a CPU.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard

from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.training.batches import Batches, ProcessShard
from hubmerge.training.fit import Fit
from tests.training.builders import make_learner_of, make_spec


def main(out: Path) -> None:
    spec = make_spec(steps=4)
    split = load_split(find_task("mini-mnist"), "train")
    learner = make_learner_of(spec, split)
    accelerator = Accelerator(cpu=True)
    for block in learner.network.encoder.transformer.resblocks:  # type: ignore[attr-defined]
        fully_shard(block)
    network = fully_shard(learner.network)
    optimizer = accelerator.prepare(
        torch.optim.AdamW(network.parameters(), weight_decay=spec.weight_decay, fused=True)
    )
    fit = Fit(learner, network, optimizer, accelerator, spec)
    shard = ProcessShard(accelerator.process_index, accelerator.num_processes)
    batches = list(Batches(learner, split, spec, shard).for_steps(range(1, 5)))
    losses = [fit.update(step, batches[step - 1], 5e-4) for step in (1, 2, 3)]
    state, weights = fit.state(), fit.weights()
    once = fit.update(4, batches[3], 5e-4)
    fit.restore(state)
    again = fit.update(4, batches[3], 5e-4)
    if accelerator.is_main_process:
        digest = sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()
        save_file(weights, out / "weights.safetensors")
        result = {"losses": losses, "once": once, "again": again, "state": digest}
        (out / "result.json").write_text(json.dumps(result))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
