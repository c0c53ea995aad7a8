"""A folder held against its manifest: which files are in it, and whether each is the one meant."""

from __future__ import annotations

from pathlib import Path

from hubmerge.durable import hash_file
from hubmerge.errors import IntegrityError
from hubmerge.manifest import NAME, Manifest


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a folder and of those below it, by their path inside it, sorted."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path for name, path in sorted(files.items()) if not path.is_dir()}


def weights_beside(folder: Path, manifest: Manifest) -> set[str]:
    """The safetensors files for which a manifest must vouch, by their path in its folder.

    What lies in folders below is another model's, but for a mixture, whose experts lie there.
    """
    found = folder.rglob("*.safetensors") if manifest.is_moe else folder.glob("*.safetensors")
    return {path.relative_to(folder).as_posix() for path in found}


def is_sealed(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder holds every file that its manifest vouches for, and no other weights."""
    weights = weights_beside(folder, manifest)
    return weights <= manifest.files.keys() and all(
        (folder / name).is_file() and hash_file(folder / name) == digest
        for name, digest in manifest.files.items()
    )


def check_sealed(folder: Path, manifest: Manifest, label: str) -> None:
    """Raise IntegrityError for a folder whose files are not those its manifest vouches for."""
    if not is_sealed(folder, manifest):
        raise IntegrityError(
            f"The files of {label} are not those that its {NAME} vouches for.",
            f"Fetch or make it anew; to use other files on purpose, remove {NAME}.",
        )
