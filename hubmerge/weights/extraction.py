"""What a full fine-tune changed, as a LoRA: the nearest change of low rank, matrix by matrix.

For whoever has whole checkpoints where adapters are asked for. What was changed outside the named
matrices, and beyond the rank, is lost; how much that is, is said.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.weights.adapter_config_fields import FILE
from hubmerge.weights.adapter_names import PEFT, A, B
from hubmerge.weights.atomic_folder import blamed
from hubmerge.weights.dtypes import Array, is_float
from hubmerge.weights.header import listed, shown
from hubmerge.weights.layout import ADAPTER
from hubmerge.weights.task_vector import TaskVector
from hubmerge.weights.writer import lay_out, write_tensor

_IN, _OUT = ".in_proj_weight", ".out_proj.weight"
# The one whose counting of an attention's out_proj `write_adapter` undoes.
_PEFT_VERSION = "0.21.2"

Factors = tuple[Array, Array]


@dataclass(frozen=True)
class Extraction:
    """Module path -> A [R, I] and B [O, R] in float32, with B A what is kept of its change.

    In nn.MultiheadAttention the path of in_proj_weight is the attention's own. `kept` is the share
    of the squared norm of all that the expert changed, `reached` what it were without a limit on
    the rank: what lies outside these modules is in neither. With `inputs_first` the base stores its
    matrices as [I, O].
    """

    rank: int
    factors: Mapping[str, Factors] = field(repr=False)
    kept: float
    reached: float
    inputs_first: bool = False


def extract(
    vector: TaskVector, names: Sequence[str], rank: int, inputs_first: bool = False
) -> Extraction:
    """The best approximation of rank `rank` to what training changed in each of these matrices.

    By singular values (Eckart and Young, https://doi.org/10.1007/BF02288367), half of each on
    either side; exact to rounding where the change has no higher rank. The same vector gives the
    same factors. Raises CheckpointError for names that are no matrices of the base, for half of a
    fused attention, and for changes that are not finite.
    """
    raise_together(CheckpointError, list(_problems(vector, names, rank)))
    factors: dict[str, Factors] = {}
    kept = reached = total = 0.0
    for name in vector.names():
        delta = vector.delta(name).astype(np.float64)
        squares = float(np.vdot(delta, delta))
        if not np.isfinite(squares):
            raise CheckpointError(
                f"What {vector.expert.folder} changes in {shown(name)} is not finite."
            )
        total += squares
        if name in names:
            a, b, values = low_rank(delta.T if inputs_first else delta, rank)
            factors[module_of(name)] = a, b
            reached += squares
            kept += float(np.vdot(values, values))
    if total == 0:
        kept = reached = total = 1.0
    return Extraction(rank, factors, kept / total, reached / total, inputs_first)


def low_rank(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """A [R, I], B [O, R] and the singular values kept of a matrix [O, I], by falling value.

    The largest entry of each row of A is positive, as the sign of a singular vector is arbitrary. A
    direction that the matrix does not have gets a unit row in A and zeros in B: it changes nothing
    and can be trained, as a new LoRA can. Of directions beyond all that there are, both are zero.
    """
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    u, values, v = u[:, :rank], values[:rank], v[:rank]
    signs = np.sign(v[np.arange(len(v)), np.abs(v).argmax(axis=1)])
    noise = np.finfo(np.float32).eps * values[0]
    roots = np.sqrt(values)
    a = np.zeros((rank, matrix.shape[1]), np.float32)
    b = np.zeros((matrix.shape[0], rank), np.float32)
    a[: len(v)] = v * (signs * np.where(values > noise, roots, 1.0))[:, None]
    b[:, : len(v)] = u * (signs * np.where(values > noise, roots, 0.0))
    return a, b, values


def write_adapter(
    folder: Path,
    extraction: Extraction,
    base_name: str,
    base_sha: str | None,
    target_modules: Sequence[str] | None = None,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as peft 0.21.2 reads them.

    `target_modules` is what peft finds the modules by, without it each by its whole path. The same
    extraction is the same bytes. Raises CheckpointError where the disk refuses.
    """
    factors = extraction.factors
    tensors = {name: values for path in factors for name, values in _named(path, factors)}
    specs = [(name, "F32", tensors[name].shape) for name in sorted(tensors)]
    with blamed(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, place in lay_out({folder / ADAPTER: specs}).items():
        write_tensor(place, tensors[name])
    targets = target_modules or [path for path in factors if not _is_out_proj(path, factors)]
    said = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": extraction.inputs_first,
        "inference_mode": True,
        "lora_alpha": extraction.rank,  # alpha / r is 1
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "peft_version": _PEFT_VERSION,
        "r": extraction.rank,
        "revision": base_sha,
        "target_modules": sorted(targets),
        "task_type": None,
    }
    with blamed(folder):
        text = json.dumps(said, indent=2, sort_keys=True)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def _named(path: str, factors: Mapping[str, Factors]) -> Iterator[tuple[str, Array]]:
    """A module's factors by the names that peft has for them."""
    a, b = factors[path]
    if _is_out_proj(path, factors):
        # peft adds this change twice: docs/decisions/0009.
        path, b = f"{path.removesuffix('.out_proj')}.base_layer.out_proj", b / np.float32(2)
    yield f"{PEFT}{path}.{A}", a
    yield f"{PEFT}{path}.{B}", b


def _is_out_proj(path: str, paths: Collection[str]) -> bool:
    """Whether a module is inside another that is adapted: only nn.MultiheadAttention has that."""
    return path.endswith(".out_proj") and path.removesuffix(".out_proj") in paths


def module_of(name: str) -> str:
    """The module of a tensor: the attention itself of its in_proj_weight."""
    return name.removesuffix(_IN) if name.endswith(_IN) else name.removesuffix(".weight")


def _problems(vector: TaskVector, names: Sequence[str], rank: int) -> Iterator[str]:
    index = vector.base.index
    if rank < 1:
        yield f"An adapter has a rank of at least 1, not {rank}."
    if not names:
        yield "No matrix is named that an adapter could change."
    strange = [
        name
        for name in names
        if not name.endswith((".weight", _IN))
        or name not in index
        or len(index[name].shape) != 2
        or not is_float(index[name].dtype)
    ]
    if strange:
        yield f"{vector.base.folder} has no matrix of a module in {listed(strange)}."
    halves = {name.removesuffix(end) for end in (_IN, _OUT) for name in names if name.endswith(end)}
    for attention in sorted(halves):
        pair = {attention + _IN, attention + _OUT}
        if attention + _IN in index and not pair <= set(names):
            yield f"Of the attention {shown(attention)} in_proj_weight and out_proj go together."
