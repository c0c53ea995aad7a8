"""Merges of adapters that only add up their changes: the sum is a product of stacked factors.

Average and task arithmetic are linear in the experts' changes. Where all of these are products B A,
so is the merge, and neither a change nor a weight of the base has to be formed or read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.merging.plan import EXPERT_OPTIONS, Expert, MergePlan
from hubmerge.merging.tensor_merge import make_deltas
from hubmerge.weights.adapter import Adapter, is_embedding
from hubmerge.weights.dtypes import Array
from hubmerge.weights.factorization import Factors
from hubmerge.weights.header import safe_name
from hubmerge.weights.lora import Convolution, LowRank

_LINEAR = ("average", "task_arithmetic")
_SOFTENING = EXPERT_OPTIONS.keys() - {"weight"}


@dataclass(frozen=True)
class Term:
    """The product of one expert in the sum: `scale` times its B [O, r] and A [r, I]."""

    expert: Expert
    adapter: Adapter
    change: LowRank | Convolution
    coefficient: float

    @property
    def rank(self) -> int:
        return self.adapter.checkpoint.tensor(self.change.a).shape[0]

    def read(self) -> Factors:
        """A and B in float64, with the whole scale in B; raises CheckpointError for NaN."""
        a, b = (self._read(name) for name in (self.change.a, self.change.b))
        return a, b * (self.coefficient * self.change.scale)

    def _read(self, name: str) -> Array:
        values = self.adapter.checkpoint.read(name).astype(np.float64)
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"Expert {self.expert.name} has values that are not finite in tensor "
                f"{safe_name(name)!r}.",
                "Another step of the expert may help.",
            )
        return values.reshape(len(values), -1)


@dataclass(frozen=True)
class LowRankSums:
    """A plan whose method is linear in the experts' changes."""

    plan: MergePlan

    def terms(self, tensor: str) -> list[Term] | None:
        """The products whose sum is the merged change of a tensor.

        None if an expert's change to it is not, or not certainly, a product or nothing.
        """
        terms = []
        for expert, vector, coefficient in zip(
            self.plan.experts, self.plan.vectors, self._coefficients(tensor), strict=True
        ):
            adapter = vector.adapter
            if adapter is None or tensor in adapter.replacements:
                return None
            change = adapter.changes.get(tensor)
            if isinstance(change, LowRank | Convolution):
                terms.append(Term(expert, adapter, change, coefficient))
            elif change is not None or _may_be_copy(adapter, tensor):
                return None
        return terms

    def _coefficients(self, tensor: str) -> list[float]:
        """The factors of the experts' changes: what the method makes of a change of 1 by one."""
        units = np.eye(len(self.plan.experts))
        deltas = make_deltas(self.plan, tensor, list(units), np.zeros(len(units)))
        params = deltas.of_tensor(self.plan.params)
        coefficients: list[float] = self.plan.method.combine(deltas, params, None).tolist()
        return coefficients


def find_low_rank_sums(plan: MergePlan) -> LowRankSums | None:
    """The sums of a plan whose method is linear; None for any other plan."""
    softened = any(getattr(expert, option) != 1 for expert in plan.experts for option in _SOFTENING)
    if plan.method.name not in _LINEAR or softened:
        return None
    return LowRankSums(plan)


def _may_be_copy(adapter: Adapter, tensor: str) -> bool:
    """Whether the tensor may be a copy of one that the adapter changes, as tied embeddings are."""
    return is_embedding(tensor) and any(map(is_embedding, adapter.changes))
