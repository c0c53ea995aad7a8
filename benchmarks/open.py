"""What opening an expert costs: the headers of its files, whatever the size of its values.

A base and an expert with other names are files whose values are holes, so nothing but headers can
be read quickly. Each is opened and matched with the base in its own process; the ratios compare a
model with one of a hundred times its size, and matching by other names with matching by equal ones.

    python -m benchmarks.open
"""

from __future__ import annotations

import json
import statistics
import struct
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

REPEATS = 5
OPEN = """
import json, resource, sys, time
from pathlib import Path
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.full_match import match_full
base, expert = map(Path, sys.argv[1:])
read = lambda: int(open("/proc/self/io").read().split()[1])
before, start = read(), time.perf_counter()
match = match_full(open_checkpoint(base), open_checkpoint(expert), "me")
seconds = time.perf_counter() - start
assert not match.problems, match.problems
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "bytes": read() - before, "memory": memory}))
"""


def write_model(folder: Path, layers: int, width: int, prefix: str) -> None:
    """A Llama of this many layers: [width, width] matrices in bfloat16, all of them holes."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tensors = {
        f"model.layers.{layer}.{name}.weight": [width, width]
        for layer in range(layers)
        for name in names
    }
    tensors["model.embed_tokens.weight"] = [32000, width]
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 2 * prod(shape)
        header[prefix + name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)


def measure(base: Path, expert: Path) -> dict[str, float]:
    """Medians of seconds, bytes read and peak memory (KiB) over several processes."""
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", OPEN, base, expert],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for _ in range(REPEATS)
    ]  # fmt: skip
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        results = {}
        for size, width in (("small", 400), ("large", 4000)):
            for role, prefix in (("base", ""), ("same", ""), ("renamed", "module._orig_mod.")):
                write_model(Path(root) / size / role, 32, width, prefix)
            for expert in ("same", "renamed"):
                folder = Path(root) / size
                results[size, expert] = measure(folder / "base", folder / expert)
        print("100 times the values, ratio of large to small, and of other names to equal ones")
        for key in ("seconds", "bytes", "memory"):
            growth = results["large", "renamed"][key] / results["small", "renamed"][key]
            names = results["large", "renamed"][key] / results["large", "same"][key]
            print(f"  {key:8} {growth:6.2f} {names:6.2f}")


if __name__ == "__main__":
    main()
