"""Steps that a loop has saved: complete as models, with a draft of the manifest beside them.

The loop writes weights and waits for nothing else. Base, digests, norms and card are added in the
background, or by the next run of the same script.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hubmerge.durable import flush_to_disk, fsync_folder, write_atomic
from hubmerge.errors import IntegrityError
from hubmerge.hub.outbox import Outbox
from hubmerge.manifest import MANIFEST_JSON, Manifest, parse_manifest
from hubmerge.opening.integrity import matches_manifest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.publication import CARD, finalize_folder
from hubmerge.opening.references import read_local_manifest, source_of
from hubmerge.opening.step_norms import measure_step_norms
from hubmerge.refs import step_tag
from hubmerge.weights.atomic_folder import atomic_folder


@dataclass(frozen=True)
class StepDrafts:
    """The saved steps of an outbox, and the drafts of their manifests."""

    outbox: Outbox

    def save(self, step: int, draft: Manifest, write: Callable[[Path], None]) -> None:
        """Save a step, so that it survives a power cut; `write` fills its folder."""
        path = self._draft(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, draft.to_bytes())  # first: a step without it could not be completed
        with atomic_folder(self.outbox.step_folder(step)) as folder:
            write(folder)

    def complete(self, step: int, base: OpenedModel) -> Manifest:
        """Write manifest and card of a saved step, if it has none, and return the manifest.

        Raises IntegrityError for a step that changed since, or that nobody saved.
        """
        folder, path = self.outbox.step_folder(step), self._draft(step)
        if path.is_file():
            for name in (MANIFEST_JSON, CARD):  # half written by a killed process
                (folder / name).unlink(missing_ok=True)
            draft = parse_manifest(path.read_bytes(), str(path))
            norms = measure_step_norms(base.checkpoint, folder)
            finalize_folder(folder, dataclasses.replace(draft, base=source_of(base), norms=norms))
            _flush(folder / MANIFEST_JSON, folder / CARD)
            path.unlink()
        manifest = read_local_manifest(folder)
        if manifest is None or not matches_manifest(folder, manifest):
            raise IntegrityError(
                f"{folder} has changed since it was saved.", "Remove the folder, if you can."
            )
        return manifest

    def read(self, step: int) -> Manifest | None:
        """The manifest of a saved step or its draft, None if it has neither."""
        path = self._draft(step)
        if path.is_file():
            return parse_manifest(path.read_bytes(), str(path))
        return read_local_manifest(self.outbox.step_folder(step))

    def _draft(self, step: int) -> Path:
        return self.outbox.folder / "drafts" / f"{step_tag(step)}.json"


def _flush(*paths: Path) -> None:
    for path in paths:
        with path.open("rb") as file:
            flush_to_disk(file)
    fsync_folder(paths[0].parent)
