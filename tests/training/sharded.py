"""Run by two processes: three updates with weights spread over them, told as JSON by the first.

Accelerate shards on accelerators only; torch's `fully_shard`, which it uses there, also works here.
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
from hubmerge.training.batches import Batches, Share
from hubmerge.training.fit import Fit
from tests.training.worlds import learner, spec


def main(out: Path) -> None:
    asked = spec(steps=4)
    split = load_split(find_task("mini-mnist"), "train")
    made = learner(asked, split)
    accelerator = Accelerator(cpu=True)
    for block in made.network.encoder.transformer.resblocks:  # type: ignore[attr-defined]
        fully_shard(block)
    network = fully_shard(made.network)
    optimizer = accelerator.prepare(
        torch.optim.AdamW(network.parameters(), weight_decay=asked.weight_decay, fused=True)
    )
    fit = Fit(made, network, optimizer, accelerator, asked)
    share = Share(accelerator.process_index, accelerator.num_processes)
    batches = list(Batches(made, split, asked, share).of(range(1, 5)))
    losses = [fit.update(step, batches[step - 1], 5e-4) for step in (1, 2, 3)]
    state, weights = fit.state(), fit.weights()
    once = fit.update(4, batches[3], 5e-4)
    fit.restore(state)
    again = fit.update(4, batches[3], 5e-4)
    if accelerator.is_main_process:
        digest = sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()
        save_file(weights, out / "weights.safetensors")
        said = {"losses": losses, "once": once, "again": again, "state": digest}
        (out / "said.json").write_text(json.dumps(said))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
