"""The shapes of a model's tensors, from the headers of its files: some kilobytes of each."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub.errors import SafetensorsParsingError

from hubmerge.errors import CheckpointError
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import list_files
from hubmerge.refs import Revision

# Each file costs a request.
_MAX_FILES = 8
_HEAD_PREFIX = "head-"

Shapes = Mapping[str, tuple[int, ...]]


def read_shapes(hub: Hub, revision: Revision) -> Shapes | None:
    """Tensor name -> shape over the safetensors files of a revision's folder; None if too many.

    Trained heads next to the model and files in subfolders do not count. Raises CheckpointError
    for an invalid file. The headers are not checked further here: the code that reads the tensors
    checks them.
    """
    files = [
        path
        for path in list_files(hub, revision)
        if _is_weight_file(path, revision.ref.subfolder or "")
    ]
    if len(files) > _MAX_FILES:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        shapes |= _read_file_shapes(hub, revision, path)
    return shapes


def _is_weight_file(path: str, inner: str) -> bool:
    folder, _, name = path.rpartition("/")
    return folder == inner and name.endswith(".safetensors") and not name.startswith(_HEAD_PREFIX)


def _read_file_shapes(hub: Hub, revision: Revision, path: str) -> Shapes:
    repo_id = str(revision.ref.repo_id)
    try:
        header = hub.call(
            f"reading the header of {path} of {revision.label}",
            lambda api: api.parse_safetensors_file_metadata(repo_id, path, revision=revision.sha),
        )
    except (SafetensorsParsingError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} of {revision.label} is not a safetensors file.") from error
    return {name: tuple(tensor.shape) for name, tensor in header.tensors.items()}
