"""Whether a folder has a result already: the same command need not be run again."""

from __future__ import annotations

from pathlib import Path

from hubmerge.errors import IntegrityError
from hubmerge.manifest import Manifest
from hubmerge.opening.integrity import matches_manifest
from hubmerge.opening.references import read_local_manifest


def read_finished(folder: Path, expected: Manifest) -> Manifest | None:
    """The manifest of a folder that has exactly the result of this recipe and licence, complete.

    None for any other folder.
    """
    try:
        existing = read_local_manifest(folder)
    except IntegrityError:
        return None
    if existing is None or existing.kind != expected.kind:
        return None
    is_same = (existing.recipe, existing.licence) == (expected.recipe, expected.licence)
    is_same &= [e.content_key for e in existing.experts] == [
        e.content_key for e in expected.experts
    ]
    return existing if is_same and matches_manifest(folder, existing) else None
