"""Extract a LoRA from a full fine-tune: the closest change of low rank, matrix by matrix.

For full checkpoints where adapters are needed. Changes outside the named matrices and beyond the
rank are lost; `KeptShares` reports how much is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.weights.dtypes import is_float
from hubmerge.weights.factorization import factorize
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.kept_shares import KeptShares, ShareCounter
from hubmerge.weights.lora_file import LoraFactors
from hubmerge.weights.lora_modules import IN_PROJ, OUT_PROJ, LoraModule
from hubmerge.weights.task_vector import TaskVector


@dataclass(frozen=True)
class Extraction:
    """The factors of each module in float32, where B A approximates its change, and the shares."""

    factors: LoraFactors = field(repr=False)
    shares: KeptShares


def extract(vector: TaskVector, modules: Sequence[LoraModule], rank: int) -> Extraction:
    """The best approximation of rank `rank` to the change of each of these modules.

    Exact up to rounding where the change has no higher rank. The same vector gives the same
    factors. Raises CheckpointError for modules that are no matrices of the base, for half of a
    fused attention, and for changes that are not finite.
    """
    raise_together(CheckpointError, list(_find_problems(vector, modules, rank)))
    by_tensor = {module.tensor: module for module in modules}
    factors, counter = {}, ShareCounter(rank)
    for name in vector.names():
        delta = vector.delta(name).astype(np.float64)
        squares = float(np.vdot(delta, delta))
        if not np.isfinite(squares):
            raise CheckpointError(
                f"The change of {vector.expert.folder} to {safe_name(name)} is not finite."
            )
        module = by_tensor.get(name)
        if module is None:
            counter.leave_out(name, squares)
            continue
        a, b, values = factorize(module.as_matrix(delta), rank)
        factors[module] = a, b
        counter.add(module.path, squares, float(np.vdot(values, values)))
    return Extraction(factors, counter.shares())


def _find_problems(vector: TaskVector, modules: Sequence[LoraModule], rank: int) -> Iterator[str]:
    index, names = vector.base.index, {module.tensor for module in modules}
    if rank < 1:
        yield f"The rank of an adapter must be at least 1, not {rank}."
    if not names:
        yield "No matrix is named for the adapter to change."
    invalid = [
        name
        for name in names
        if not name.endswith((".weight", IN_PROJ))
        or name not in index
        or len(index[name].shape) != 2
        or not is_float(index[name].dtype)
    ]
    if invalid:
        yield f"{vector.base.folder} has no module with a matrix for {summarize_names(invalid)}."
    halves = {
        name.removesuffix(end)
        for end in (IN_PROJ, OUT_PROJ)
        for name in names
        if name.endswith(end)
    }
    for attention in sorted(halves):
        pair = {attention + IN_PROJ, attention + OUT_PROJ}
        if attention + IN_PROJ in index and not pair <= names:
            name = safe_name(attention)
            yield f"In the attention {name}, in_proj_weight and out_proj must be adapted together."
