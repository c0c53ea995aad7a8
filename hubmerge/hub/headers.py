"""The shapes of a model's tensors, by the headers of its files: some kilobytes of each."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub.errors import SafetensorsParsingError

from hubmerge.errors import CheckpointError
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import list_files
from hubmerge.refs import Revision

# More files are more requests than a look is worth.
_MOST_FILES = 8
_HEAD = "head-"

Shapes = Mapping[str, tuple[int, ...]]


def read_shapes(hub: Hub, revision: Revision) -> Shapes | None:
    """Tensor name -> shape over the safetensors files of a revision's folder; None if too many.

    Trained heads beside a model and what lies in folders below are none of it. Raises
    CheckpointError for a file that is none. No more is promised of the headers: whoever reads the
    tensors checks them again.
    """
    files = [
        path
        for path in list_files(hub, revision)
        if _holds_weights(path, revision.ref.subfolder or "")
    ]
    if len(files) > _MOST_FILES:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        shapes |= _shapes_in(hub, revision, path)
    return shapes


def _holds_weights(path: str, inner: str) -> bool:
    folder, _, name = path.rpartition("/")
    return folder == inner and name.endswith(".safetensors") and not name.startswith(_HEAD)


def _shapes_in(hub: Hub, revision: Revision, path: str) -> Shapes:
    repo_id = str(revision.ref.repo_id)
    try:
        header = hub.ask(
            f"reading the header of {path} of {revision.label}",
            lambda api: api.parse_safetensors_file_metadata(repo_id, path, revision=revision.sha),
        )
    except (SafetensorsParsingError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} of {revision.label} is no safetensors file.") from error
    return {name: tuple(tensor.shape) for name, tensor in header.tensors.items()}
