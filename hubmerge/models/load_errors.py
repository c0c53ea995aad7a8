"""What the libraries raise for a model that they cannot load, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubmerge.errors import CheckpointError, HubmergeError
from hubmerge.refs import printable


@contextmanager
def load_errors_name(path: Path) -> Iterator[None]:
    """Turn what a library raises in the block into a CheckpointError that names `path`.

    The libraries have no common class for a configuration or weights that they do not accept.
    """
    try:
        yield
    except (HubmergeError, MemoryError):
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()))[:400]
        raise CheckpointError(f"{path} cannot be loaded as a model: {reason}") from error
