"""A model with an image tower and a text tower, whichever library wrote its folder."""

from __future__ import annotations

from pathlib import Path

from hubmerge.errors import CheckpointError
from hubmerge.models.model import VisionText
from hubmerge.models.opening import open_model as open_image_model
from hubmerge.models.vision_encoder import VisionEncoder

__all__ = ["VisionText", "open_model"]


def open_model(folder: Path) -> VisionText:
    """Open a CLIP; raises CheckpointError for any other model, and as `opening.open_model` does."""
    model = open_image_model(folder)
    if isinstance(model, VisionEncoder):
        raise CheckpointError(
            f"{folder} holds a {model.name}, which reads no words.", "Use a CLIP instead."
        )
    return model
