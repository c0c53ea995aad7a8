"""What opened models have in common, whatever they were opened from.

Shapes: B examples, D features, N prompts, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from hubmerge.models.preprocess import Transform
from hubmerge.models.tensor_names import TensorNames


class Savable(Protocol):
    """An opened model; all of it is in evaluation mode, in float32, on the CPU."""

    @property
    def module(self) -> Any:
        """All that its folder holds, as the library's own nn.Module."""

    @property
    def names(self) -> TensorNames:
        """What the tensors of the folder are called inside `module`."""

    @property
    def layout(self) -> str:
        """Whose loader opens its folder: open_clip or transformers."""

    @property
    def name(self) -> str:
        """The class of `module`, for sentences."""

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the weights in the layout and under the names they came in, in float32.

        `state` has the names of `module.state_dict()` and replaces its values, as it must where
        weights are spread over processes. A config beside them is rewritten to say float32.
        """


class Encoder(Savable, Protocol):
    """A model that turns examples into features."""

    @property
    def encoder(self) -> nn.Module:
        """Examples -> features [B, D]: the part that is trained."""

    @property
    def width(self) -> int:
        """D."""


class LabelEncoder(Encoder, Protocol):
    """An encoder that puts words where it puts examples."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Features [N, D] of N prompts, not normalised."""

    def scale(self) -> float:
        """What cosines are multiplied by to be logits."""


class VisionText(LabelEncoder, Protocol):
    """A CLIP: an image tower [B, 3, H, W] -> [B, D] and a text tower."""

    @property
    def preprocess(self) -> PreprocessCfg:
        """Size, mean and standard deviation of the images it takes."""

    def transform(self, augment: bool) -> Transform:
        """From a PIL image to a tensor [3, H, W]: as for evaluation, or with a random crop."""
