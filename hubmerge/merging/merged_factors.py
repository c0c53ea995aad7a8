"""The merged change of each module as LoRA factors, and how much of the change they keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hubmerge.cores import core_count, in_order
from hubmerge.errors import CheckpointError
from hubmerge.merging.engine import (
    check_copies,
    check_integer_tensors,
    run_survey,
    survey_softenings,
)
from hubmerge.merging.low_rank_sums import LowRankSums, find_low_rank_sums
from hubmerge.merging.plan import MergePlan, canonical
from hubmerge.merging.softening import Softening
from hubmerge.merging.tensor_merge import tensor_deltas
from hubmerge.progress import Progress
from hubmerge.weights.dtypes import Array, is_float
from hubmerge.weights.extraction import Extraction
from hubmerge.weights.factorization import Factors, factorize, factorize_sum
from hubmerge.weights.header import safe_name
from hubmerge.weights.kept_shares import ShareCounter
from hubmerge.weights.lora_modules import IN_PROJ, LoraModule


def largest_rank(plan: MergePlan, modules: Sequence[LoraModule]) -> int:
    """The rank beyond which no module needs more, from headers alone.

    That is the shorter side of its matrix, or the sum of the experts' ranks if that is less.
    """
    sums = find_low_rank_sums(plan)
    ranks = []
    for module in modules:
        terms = sums.terms(module.tensor) if sums else None
        limit = sum(term.rank for term in terms) if terms else max(module.size)
        ranks.append(min(*module.size, limit))
    return max(ranks, default=1)


def factorize_merge(
    plan: MergePlan, modules: Sequence[LoraModule], rank: int, progress: Progress
) -> Extraction:
    """The best factors of rank `rank` for the merged change of each of these modules.

    Modules that the merge does not change get none. Sums of products are factored as such, and no
    weight of the base is read for them; other changes are computed as the engine does, one tensor
    of each expert at a time. Raises what `merge` raises for values, and CheckpointError if no
    module changes.
    """
    merged = _MergedChanges(canonical(plan), progress)
    by_tensor = {module.tensor: module for module in modules}
    factors: dict[LoraModule, Factors] = {}
    unchanged: dict[str, tuple[LoraModule, Factors]] = {}
    counter = ShareCounter(rank)
    names = merged.names()
    for done, (name, of_sum) in enumerate(merged.factorize_sums(names, by_tensor, rank)):
        progress("factor", done, len(names))
        module = by_tensor.get(name)
        if module is None:
            counter.leave_out(name, _squares(merged.change(name)))
            continue
        a, b, squares, kept = of_sum or merged.factorize(module, rank)
        if squares:
            factors[module] = a, b
            counter.add(module.path, squares, kept)
        else:
            unchanged[module.path] = module, (a, b)
    progress("factor", len(names), len(names))
    if not factors:
        raise _nothing_to_keep(counter)
    factors |= dict(_missing_halves(factors, unchanged))
    return Extraction(factors, counter.shares())


_Found = tuple[Array, Array, float, float]


@dataclass(frozen=True)
class _MergedChanges:
    """The merged changes of a plan's tensors; the model is surveyed only if one needs that."""

    plan: MergePlan
    progress: Progress

    @cached_property
    def sums(self) -> LowRankSums | None:
        return find_low_rank_sums(self.plan)

    def names(self) -> list[str]:
        """The tensors that the merge may change."""
        index = self.plan.base.index
        adapters = [vector.adapter for vector in self.plan.vectors]
        if None in adapters:
            return [name for name, tensor in index.items() if is_float(tensor.dtype)]
        changed = {
            name
            for adapter in adapters
            if adapter
            for name in (*adapter.changes, *adapter.replacements)
        }
        return [name for name in index if name in changed and is_float(index[name].dtype)]

    def factorize_sums(
        self, names: Sequence[str], modules: Mapping[str, LoraModule], rank: int
    ) -> Iterator[tuple[str, _Found | None]]:
        """Each name, with the result of `factorize` if the change is a sum of products.

        Several of them are factored at a time.
        """
        sums = self.sums

        def work(name: str) -> _Found | None:
            terms = sums.terms(name) if sums and name in modules else None
            if not terms:
                return None
            a, b, values = factorize_sum([term.read() for term in terms], rank)
            return a, b, _squares(values), _squares(values[:rank])

        with ThreadPoolExecutor(core_count(), thread_name_prefix="factor") as pool:
            yield from in_order(pool, work, names, 2 * core_count())

    def factorize(self, module: LoraModule, rank: int) -> _Found:
        """Factors, the squared norm of the change, and that of what the factors keep."""
        change = self.change(module.tensor)
        a, b, values = factorize(module.as_matrix(change.astype(np.float64)), rank)
        return a, b, _squares(change), _squares(values)

    def change(self, name: str) -> Array:
        """The merged change of a tensor; CheckpointError for values that are not finite."""
        plan = self.plan
        softenings, survey = self._survey
        deltas = tensor_deltas(plan, name, plan.base.read(name), softenings)
        if not plan.method.is_changed(deltas, plan.params, survey):
            return np.zeros_like(deltas.values[0])
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.asarray(plan.method.combine(deltas, deltas.of_tensor(plan.params), survey))
        if not np.isfinite(change).all():
            raise CheckpointError(
                f"The merged change has values that are not finite in tensor {safe_name(name)!r}.",
                "A smaller scale or another step of the expert may help.",
            )
        return change

    @cached_property
    def _survey(self) -> tuple[Sequence[Softening], Any]:
        """What is known of the whole model before the first tensor is merged."""
        check_integer_tensors(self.plan)
        check_copies(self.plan)
        softenings = survey_softenings(self.plan, self.progress)
        return softenings, run_survey(self.plan, softenings, self.progress)


def _squares(values: Array) -> float:
    wide = values.astype(np.float64).reshape(-1)
    return float(np.dot(wide, wide))


def _missing_halves(
    factors: Mapping[LoraModule, Factors], unchanged: Mapping[str, tuple[LoraModule, Factors]]
) -> Iterator[tuple[LoraModule, Factors]]:
    """The unchanged half of every nn.MultiheadAttention of which one half changed.

    peft has both or none.
    """
    for module in factors:
        is_in_proj = module.tensor.endswith(IN_PROJ)
        path = module.path
        half = f"{path}.out_proj" if is_in_proj else path.removesuffix(".out_proj")
        if half in unchanged:
            yield unchanged[half]


def _nothing_to_keep(counter: ShareCounter) -> CheckpointError:
    if not counter.total:
        return CheckpointError(
            "The merge changes nothing, so there is nothing for an adapter to hold.",
            "Use the base itself.",
        )
    return CheckpointError(
        "The merge changes no matrix of a module, so an adapter could keep nothing of it.",
        "Leave --as-lora out.",
    )
