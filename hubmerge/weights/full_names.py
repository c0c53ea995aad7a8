"""The names of a full model's tensors, however they were saved, in one spelling.

Wrappers of compiled, distributed and adapted modules put a prefix before every name; older versions
of libraries spelled norms and the parts of vision-language models differently, and stored buffers
that are computed today.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from hubmerge.weights.dtypes import is_float
from hubmerge.weights.header import TensorInfo

_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
_OLD_NORM = re.compile(r"(.*LayerNorm)\.(gamma|beta)")
# torch stores the norm and the direction of weight normalisation under new names since 2.0.
_WEIGHT_NORM = re.compile(r"(.*)\.parametrizations\.(\w+)\.original([01])")
_INTEGER_BUFFERS = re.compile(r"(.*\.)?(position_ids|token_type_ids|relative_position_index)")
_FREQUENCIES = re.compile(r"(.*\.)?rotary\w*\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")
_MASKS = re.compile(r"(.*\.)?(attn|attention|self_attn)\.(bias|masked_bias)")
# A model without one of these parts, or one of these parts alone, is a whole one of its kind.
PARTS = {
    "lm_head", "embed_out", "proj_out", "classifier", "score", "qa_outputs", "cls", "pooler",
    "text_model", "vision_model", "text_projection", "visual_projection", "logit_scale",
    "logit_bias", "vision_tower", "visual", "multi_modal_projector", "language_model",
    "audio_tower", "final_logits_bias",
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
    """Each name without wrappers, norms in today's spelling: name -> plain name."""
    return {name: _plain_name(name) for name in names}


def part_of(name: str) -> str:
    """The part of a model that a tensor belongs to, such as `lm_head` or `vision_tower`."""
    parts = name.split(".")
    return parts[1] if parts[0] == "model" and parts[1:2] and parts[1] in PARTS else parts[0]


def part_of_class(name: str) -> str:
    """What the names of a part of a model contain if it has this class; empty if not known."""
    return next((part for part in ("vision", "text", "audio") if part in name.lower()), "")


def is_buffer(name: str, tensor: TensorInfo) -> bool:
    """Whether a tensor is computed from the configuration: a mask, positions, frequencies."""
    if _INTEGER_BUFFERS.fullmatch(name):
        return not is_float(tensor.dtype)
    if _FREQUENCIES.fullmatch(name):
        return True
    # A bias of attention is a vector; a causal mask is [1, 1, N, N], and its other value a scalar.
    return bool(_MASKS.fullmatch(name)) and len(tensor.shape) in (0, 4)


def find_prefixes(
    expert: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo], part: str = ""
) -> list[Prefix]:
    """The prefixes under which most of the expert's tensors fit tensors of the base.

    By plain names. Several are returned if they fit equally many, and the empty one alone if it is
    among them; one with `part` in it is preferred.
    """
    counts = _count_fits(expert, base)
    best = max(counts.values(), default=0)
    found = [prefix for prefix, count in counts.items() if count == best]
    if Prefix() in found or best == 0:
        return [Prefix()]
    by_names: dict[tuple[str | None, ...], Prefix] = {}
    for prefix in sorted(found, key=lambda prefix: (len(prefix.drop + prefix.add), prefix)):
        by_names.setdefault(tuple(prefix(name) for name in expert), prefix)
    named = [prefix for prefix in by_names.values() if part and part in prefix.add + prefix.drop]
    return named if len(named) == 1 else list(by_names.values())


def _count_fits(
    expert: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo]
) -> Counter[Prefix]:
    """The number of the expert's tensors that fit one of the base under each prefix; none has 0."""
    by_rest: dict[str, list[tuple[str, TensorInfo]]] = defaultdict(list)
    for name, tensor in base.items():
        for add in _beginnings(name):
            by_rest[name.removeprefix(add)].append((add, tensor))
    return Counter(
        Prefix(drop, add)
        for name, tensor in expert.items()
        for drop in _beginnings(name)
        for add, ours in by_rest.get(name.removeprefix(drop), ())
        if tensor.fits(ours)
    )


def _plain_name(name: str) -> str:
    while wrapper := next(filter(name.startswith, _WRAPPERS), ""):
        name = name.removeprefix(wrapper)
    name = name.replace("._orig_mod.", ".")
    if old := _OLD_NORM.fullmatch(name):
        name = f"{old[1]}.{'weight' if old[2] == 'gamma' else 'bias'}"
    if new := _WEIGHT_NORM.fullmatch(name):
        name = f"{new[1]}.{new[2]}_{'gv'[int(new[3])]}"
    return name


def _beginnings(name: str) -> Iterator[str]:
    """The first parts of a name, up to a number, of which a prefix may consist."""
    beginning = ""
    yield beginning
    for part in name.split(".")[:-1][:_MAX_DEPTH]:
        if part.isdigit():
            return
        beginning = f"{beginning}{part}."
        yield beginning
