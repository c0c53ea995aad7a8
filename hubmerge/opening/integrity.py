"""Compare the files of a folder with the SHA-256 that its manifest lists."""

from __future__ import annotations

from pathlib import Path

from hubmerge.errors import IntegrityError
from hubmerge.file_digests import file_digests
from hubmerge.manifest import MANIFEST_JSON, Manifest


def files_in(folder: Path) -> dict[str, Path]:
    """All files in a folder and its subfolders, path in the folder -> file, sorted."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path for name, path in sorted(files.items()) if not path.is_dir()}


def weight_files_in(folder: Path, manifest: Manifest) -> set[str]:
    """The safetensors files that a manifest must list, by their path in the folder.

    Subfolders hold other models, except in a mixture of experts, whose experts are in subfolders.
    """
    paths = folder.rglob("*.safetensors") if manifest.is_moe else folder.glob("*.safetensors")
    return {path.relative_to(folder).as_posix() for path in paths}


def matches_manifest(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder holds every file that its manifest lists, and no other weights."""
    files = {folder / name: digest for name, digest in manifest.files.items()}
    is_complete = weight_files_in(folder, manifest) <= manifest.files.keys()
    return is_complete and all(map(Path.is_file, files)) and file_digests(files) == files


def check_manifest(folder: Path, manifest: Manifest, label: str) -> None:
    """Raise IntegrityError if the files of a folder do not match its manifest."""
    if not matches_manifest(folder, manifest):
        raise IntegrityError(
            f"The files of {label} do not match the SHA-256 in its {MANIFEST_JSON}.",
            f"Fetch or make it again; to use other files on purpose, remove {MANIFEST_JSON}.",
        )
