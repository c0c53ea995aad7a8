"""The norms of a saved step, for its manifest: a selection uses them without fetching the step."""

from __future__ import annotations

import math
from pathlib import Path

from hubmerge.errors import CheckpointError
from hubmerge.opening.matched_inputs import match_alone
from hubmerge.training_curve import Norms
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.match_options import DEFAULT_OPTIONS
from hubmerge.weights.task_norms import norm, norms_by_layer, tensor_squares
from hubmerge.weights.task_vector import TaskVector


def measure_step_norms(base: Checkpoint, folder: Path) -> Norms | None:
    """The norms of a step's task vector; None if it is not finite, or the step does not fit.

    An adapter that is not a change of weights, such as a prefix, has no task vector.
    """
    try:
        step = match_alone(base, open_checkpoint(folder), str(folder), DEFAULT_OPTIONS)
        vector = TaskVector(base, step)
        if vector.adapter is None and vector.full.problems:
            return None
        squares = tensor_squares(vector)
    except CheckpointError:
        return None
    model = norm(squares.values())
    return Norms(model, norms_by_layer(squares)) if math.isfinite(model) else None
