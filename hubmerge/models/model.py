"""The interfaces that loaded models have in common, independent of their layout.

Shapes: B examples, D features, N prompts, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from hubmerge.models.tensor_names import TensorNames


class Savable(Protocol):
    """A loaded model: in evaluation mode, in float32, on the CPU."""

    @property
    def module(self) -> Any:
        """The complete model of the folder, as the library's own nn.Module."""

    @property
    def names(self) -> TensorNames:
        """The mapping from tensor names in the folder to names in `module`."""

    @property
    def layout(self) -> str:
        """The library whose layout the folder has: open_clip or transformers (or peft)."""

    @property
    def name(self) -> str:
        """The class name of `module`, for messages."""

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the weights in float32, in the same layout and with the same names as they had.

        `state` has the names of `module.state_dict()` and replaces its values; it is needed when
        weights are sharded over processes. A config is also written, with dtype float32.
        """


class Encoder(Savable, Protocol):
    """A model that turns examples into features."""

    @property
    def encoder(self) -> nn.Module:
        """The part that is trained: examples -> features [B, D]."""

    @property
    def width(self) -> int:
        """The feature dimension D."""


class LabelEncoder(Encoder, Protocol):
    """An encoder that embeds text into the same space as examples."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Features [N, D] of N prompts, not normalised."""

    def scale(self) -> float:
        """The factor from cosines to logits."""
