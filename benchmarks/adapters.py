"""The speed of merging LoRA adapters as ratios, measured in one run: whole commands, warm cache.

to a LoRA          our merge of adapters by averaging, as an adapter of rank --out-rank; it reads no
                   weights of the base
peft's svd         the same by peft's add_weighted_adapter(combination_type="svd"), which decomposes
                   the full change of every layer
to whole weights   our merge of the same adapters into the base
average            our merge of as many whole experts, for comparison

    python -m benchmarks.adapters                   8 adapters of rank 8 on 97 M parameters
    python -m benchmarks.adapters --preset tiny     seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.merge import measure, ours
from benchmarks.workload import PRESETS, Preset, make_workload, tensor_shapes

PEFT = """
import sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM
out, rank, base, *adapters = sys.argv[1:]
model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapters[0], "a0")
for number, path in enumerate(adapters[1:], 1):
    model.load_adapter(path, f"a{number}")
names = [f"a{number}" for number in range(len(adapters))]
weights = [1 / len(names)] * len(names)
model.add_weighted_adapter(names, weights, "merged", "svd", svd_rank=int(rank))
model.save_pretrained(out, selected_adapters=["merged"])
"""


def write_adapters(folder: Path, base: Path, preset: Preset, count: int, rank: int) -> list[Path]:
    """Write adapters of all linear layers, as peft writes them."""
    folders = []
    for number in range(count):
        path = folder / f"adapter{number}"
        path.mkdir()
        draw, tensors = np.random.default_rng(number), {}
        for name, shape in tensor_shapes(preset):
            if not name.endswith("_proj.weight"):
                continue
            key = f"base_model.model.{name.removesuffix('.weight')}"
            down = draw.normal(0, shape[1] ** -0.5, (rank, shape[1]))
            up = draw.normal(0, 1e-3, (shape[0], rank))
            tensors[f"{key}.lora_A.weight"] = down.astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = up.astype(np.float32)
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base),
            "r": rank, "lora_alpha": rank, "target_modules": ".*_proj", "bias": "none",
        }  # fmt: skip
        (path / "adapter_config.json").write_text(json.dumps(config))
        folders.append(path)
    return folders


def write_config(base: Path, preset: Preset) -> None:
    """Write what transformers needs to open the base."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": preset.hidden,
        "intermediate_size": preset.inner, "num_hidden_layers": preset.layers,
        "vocab_size": preset.vocabulary, "num_attention_heads": preset.hidden // 8,
        "num_key_value_heads": preset.hidden // 8, "tie_word_embeddings": False,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))


def main() -> None:
    """Measure the programs in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("tiny", "97m"), default="97m")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out-rank", type=int, help="rank of the result [that of an adapter]")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for seconds and MiB of every run, as JSON")
    options = parser.parse_args()
    preset, rank = PRESETS[options.preset], options.out_rank or options.rank
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        with multiprocessing.Pool(1) as maker:  # whose memory is not this process's
            base, *experts = maker.apply(make_workload, (scratch, preset, options.adapters))
        write_config(base, preset)
        for expert in experts:
            write_config(expert, preset)
        adapters = write_adapters(scratch, base, preset, options.adapters, options.rank)
        env = {"HUBMERGE_HOME": str(scratch / "home"), "HF_HOME": str(scratch / "hf")}
        out, rival = scratch / "ours", scratch / "peft"
        words: dict[str, tuple[Sequence[str], Path]] = {
            "to a LoRA": ([*ours("average", out, base, adapters), "--as-lora", str(rank)], out),
            "peft's svd": (
                [sys.executable, "-c", PEFT, *map(str, (rival, rank, base, *adapters))], rival,
            ),
            "to whole weights": (ours("average", out, base, adapters), out),
            "average": (ours("average", out, base, experts), out),
        }  # fmt: skip
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in words}
        for _ in range(options.runs):
            for name, (command, folder) in words.items():
                rows[name].append(measure(command, folder, env))
    _print(rows)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def _print(rows: dict[str, list[tuple[float, float]]]) -> None:
    seconds = {name: statistics.median(s for s, _ in runs) for name, runs in rows.items()}
    for name, runs in rows.items():
        print(f"{name:18} {seconds[name]:8.2f} s {max(mib for _, mib in runs):7.0f} MiB")
    for one, other in (("peft's svd", "to a LoRA"), ("to whole weights", "average")):
        print(f"{one} / {other}: {seconds[one] / seconds[other]:.2f}")


if __name__ == "__main__":
    main()
