"""What a callback needs of its Trainer: the Trainer does not pass itself to its callbacks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from types import FrameType

    from transformers import Trainer, TrainerCallback


def find_trainer(callback: TrainerCallback) -> Trainer | None:
    """The Trainer that calls a callback: one of the callers that has the callback in its list."""
    for frame in _callers(sys._getframe(1)):
        trainer = frame.f_locals.get("self")
        handler = getattr(trainer, "callback_handler", None)
        if any(other is callback for other in getattr(handler, "callbacks", ())):
            return trainer
    return None


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def can_evaluate(trainer: Trainer | None, args: Any) -> bool:
    """Whether an evaluation has something to evaluate on; without it a Trainer would raise."""
    if trainer is None:
        return str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no"
    return trainer.eval_dataset is not None or getattr(trainer, "evaluator", None) is not None


def is_sharded(args: Any) -> bool:
    """Whether the weights of a Trainer's model are spread over processes."""
    return bool(args.fsdp) or bool(args.deepspeed)


def gather_weights(trainer: Trainer | None) -> Mapping[str, Tensor]:
    """All weights of a sharded model, by the Trainer's accelerator; call it in all processes.

    Raises RuntimeError if the Trainer was not found.
    """
    if trainer is None:
        raise RuntimeError("the Trainer that gathers the weights was not found")
    return trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
