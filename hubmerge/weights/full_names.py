"""The names of a full model's tensors, however they were saved, in one spelling.

Wrappers of compiled, distributed and adapted modules put a prefix before every name; older versions
of libraries spelled norms and the parts of vision-language models differently, and stored buffers
that are computed today.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from hubmerge.weights.dtypes import is_float
from hubmerge.weights.header import TensorInfo

_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
# transformers 5 puts the parts of a vision-language model into `model`; before, they were outside.
_VLM_PARTS = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("visual.", "model.visual."),
)
_OLD_NORM = re.compile(r"(.*LayerNorm)\.(gamma|beta)")
_INTEGER_BUFFERS = re.compile(r"(.*\.)?(position_ids|token_type_ids|relative_position_index)")
_FREQUENCIES = re.compile(r"(.*\.)?rotary\w*\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")
_MASKS = re.compile(r"(.*\.)?(attn|attention|self_attn)\.(bias|masked_bias)")
# A model without one of these parts, or one of these parts alone, is a whole one of its kind.
PARTS = {
    "lm_head", "embed_out", "proj_out", "classifier", "score", "qa_outputs", "cls", "pooler",
    "text_model", "vision_model", "text_projection", "visual_projection", "logit_scale",
    "logit_bias", "vision_tower", "visual", "multi_modal_projector", "language_model",
    "audio_tower",
}  # fmt: skip
_MAX_DEPTH = 2  # parts of a prefix that a name may have more or less


class Prefix(NamedTuple):
    """Names of an expert become names of the base by dropping one prefix and adding another."""

    drop: str = ""
    add: str = ""

    def __call__(self, name: str) -> str | None:
        """The base's name, None for a name without the prefix."""
        return self.add + name.removeprefix(self.drop) if name.startswith(self.drop) else None


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without wrappers and in today's spelling: name -> plain name."""
    names = list(names)
    is_vlm = any(
        name.startswith(("language_model.model.", "model.language_model.")) for name in names
    )
    return {name: _plain_name(name, is_vlm) for name in names}


def is_buffer(name: str, tensor: TensorInfo) -> bool:
    """Whether a tensor is computed from the configuration: a mask, positions, frequencies."""
    if _INTEGER_BUFFERS.fullmatch(name):
        return not is_float(tensor.dtype)
    if _FREQUENCIES.fullmatch(name):
        return True
    # A bias of attention is a vector; a causal mask is [1, 1, N, N], and its other value a scalar.
    return bool(_MASKS.fullmatch(name)) and len(tensor.shape) in (0, 4)


def find_prefixes(expert: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo]) -> list[Prefix]:
    """The prefixes under which most of the expert's tensors fit tensors of the base.

    By plain names. Several are returned if they fit equally many, and the empty one alone if it is
    among them.
    """
    heads, base_heads = _heads(expert), _heads(base)
    candidates = {Prefix(drop, add) for drop in heads for add in base_heads if not (drop and add)}
    counts = {prefix: _count_fits(prefix, expert, base) for prefix in candidates}
    best = max(counts.values(), default=0)
    found = sorted(prefix for prefix, count in counts.items() if count == best)
    return [Prefix()] if Prefix() in found or best == 0 else found


def _count_fits(
    prefix: Prefix, expert: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo]
) -> int:
    renamed = ((prefix(name), tensor) for name, tensor in expert.items())
    return sum(
        name is not None and name in base and tensor.fits(base[name]) for name, tensor in renamed
    )


def _plain_name(name: str, is_vlm: bool) -> str:
    while wrapper := next(filter(name.startswith, _WRAPPERS), ""):
        name = name.removeprefix(wrapper)
    name = name.replace("._orig_mod.", ".")
    if old := _OLD_NORM.fullmatch(name):
        name = f"{old[1]}.{'weight' if old[2] == 'gamma' else 'bias'}"
    for outside, inside in _VLM_PARTS if is_vlm else ():
        if name.startswith(outside):
            return inside + name.removeprefix(outside)
    return name


def _heads(names: Iterable[str]) -> set[str]:
    return {head for name in names for head in _heads_of(name)}


def _heads_of(name: str) -> Iterator[str]:
    parts = name.split(".")
    for depth in range(min(len(parts), _MAX_DEPTH + 1)):
        yield "".join(f"{part}." for part in parts[:depth])
