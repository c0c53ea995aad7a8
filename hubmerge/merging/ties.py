"""TIES-Merging: trim, elect a sign, average the changes that agree with it.

The rules are those of the authors' code (`topk20_mass_dis-mean` of
https://github.com/prateeky2806/ties-merging), bit for bit where weights are 1: entries are ranked
over the whole model, ties at the threshold are kept, and zero sums get the majority sign. Paper:
https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hubmerge.merging import kernels
from hubmerge.merging.deltas import DeltaPasses, Deltas, ParallelPasses, RankedPasses
from hubmerge.merging.methods import weighted_sum
from hubmerge.merging.params import TiesParams
from hubmerge.merging.tensor_ranks import Ranks, tensor_ranks
from hubmerge.merging.trim import kth_magnitudes, magnitudes
from hubmerge.weights.array_blocks import BLOCK_SIZE, blocks, scratch
from hubmerge.weights.dtypes import Array

_BOOL, _BYTE, _DOUBLE = np.dtype(np.bool_), np.dtype(np.uint8), np.dtype(np.float64)
_MOST_COUNTED = 256


@dataclass
class SignVotes:
    """What is known of the majority sign while a model is merged.

    `balance` is how many more entries elected the positive sign so far. `undecided` are the parts
    in which kept changes cancel, by tensor and first entry, with what they took for the majority.
    """

    balance: int = 0
    undecided: dict[tuple[str, int], bool] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(
        self, deltas: Deltas, positives: int, negatives: int, cancels: bool, is_positive: bool
    ) -> None:
        """Count the signs of a part, and note whether kept changes cancel in it."""
        with self._lock:
            self.balance += positives - negatives
            if cancels:
                self.undecided[deltas.tensor, deltas.start] = is_positive


@dataclass(frozen=True)
class TiesSurvey:
    """What TIES needs from the whole model before it can merge one tensor.

    `thresholds`: per expert, the smallest magnitude that is kept, or those of each tensor.
    `majority`: the sign (-1, 0 or 1) that most entries of the model elect. It decides only where
    kept changes cancel, so a merge by several threads begins without it (None): such parts take
    the majority of the entries before them, and those that took the wrong one are merged again.
    """

    thresholds: tuple[np.float32, ...] | Ranks
    majority: int | None
    votes: SignVotes = field(default_factory=SignVotes, compare=False)

    def of_tensor(self, tensor: str) -> Sequence[np.float32]:
        """Per expert, the smallest magnitude of this tensor that is kept."""
        if isinstance(self.thresholds, tuple):
            return self.thresholds
        return [smallest for (smallest,) in self.thresholds[tensor]]

    @property
    def is_positive(self) -> bool:
        """Whether zero sums elect the positive sign, as far as that is known.

        Where the majority is zero, too, the authors' code takes the negative changes.
        """
        return self.votes.balance >= 0 if self.majority is None else self.majority > 0


def ties(deltas: Deltas, params: TiesParams, survey: TiesSurvey) -> Array:
    """scale * the weighted mean of the trimmed changes that have the elected sign.

    Weights, which the paper does not have, count in the mean: sum(w_i d_i) / sum(w_i) over the
    experts whose change has that sign. In the election they count only with sign=weighted. All must
    be > 0.
    """
    thresholds, is_positive = survey.of_tensor(deltas.tensor), survey.is_positive
    if kernels.fit(*deltas.values):
        merged, positives, negatives, cancels = kernels.ties(
            deltas.values, thresholds, deltas.weights, params.sign == "weighted", is_positive,
            params.scale,
        )  # fmt: skip
        if survey.majority is None:
            survey.votes.count(deltas, positives, negatives, cancels, is_positive)
        return merged
    merged = np.empty_like(deltas.values[0])
    for out_block, *values in blocks(merged, *deltas.values):
        trimmed = trim(values, thresholds)
        sums = elected_sums(trimmed, deltas.weights, params)
        positive = sums >= 0 if is_positive else sums > 0
        mean = mean_of_agreeing(trimmed, positive, deltas.weights)
        if survey.majority is None:
            positives, negatives = (int(np.count_nonzero(s)) for s in (sums > 0, sums < 0))
            # Where kept changes cancel, they have both signs, so one of them gave a mean.
            decided = positives + negatives == sums.size
            cancels = not decided and bool(((sums == 0) & (mean != 0)).any())
            survey.votes.count(deltas, positives, negatives, cancels, is_positive)
        np.multiply(mean, params.scale, out=out_block)
    return merged


def mean_of_agreeing(trimmed: Sequence[Array], positive: Array, weights: Sequence[float]) -> Array:
    """The weighted mean of the entries that are not zero and have the elected sign, or zero.

    It is for one block, in memory that the next block reuses.
    """
    size, dtype = positive.size, trimmed[0].dtype
    total, agreeing = scratch("total", size, dtype), scratch("agreeing", size, dtype)
    agrees, share = scratch("agrees", size, _BOOL), scratch("share", size, _DOUBLE)
    is_counted = all(weight == 1 for weight in weights) and len(trimmed) < _MOST_COUNTED
    divisor = scratch("divisor", size, _BYTE if is_counted else _DOUBLE)
    divisor[:] = 0
    for number, (delta, weight) in enumerate(zip(trimmed, weights, strict=True)):
        product = agreeing if number else total
        np.greater(delta, 0, out=agrees)
        np.equal(agrees, positive, out=agrees)
        np.multiply(delta, agrees, out=product)
        np.not_equal(product, 0, out=agrees)
        divisor += agrees.view(_BYTE) if is_counted else np.multiply(agrees, weight, out=share)
        if weight != 1:
            product *= weight
        if number:
            total += product
    divisor += divisor == 0  # where nothing agrees, the total is zero
    total /= divisor.astype(dtype)
    return total


def survey_ties(passes: DeltaPasses, params: TiesParams) -> TiesSurvey:
    """Find the trim thresholds and the majority sign.

    If passes can be made by several threads, the majority is counted while the model is merged;
    else in one more pass.
    """
    by_model = params.trim == "model"
    thresholds = model_thresholds(passes, params) if by_model else _ranks(passes, params)
    survey = TiesSurvey(thresholds, None)
    if isinstance(passes, ParallelPasses):
        return survey
    balance = 0
    for deltas in passes():
        limits = survey.of_tensor(deltas.tensor)
        for values in blocks(*deltas.values):
            sums = elected_sums(trim(values, limits), deltas.weights, params)
            balance += int(np.count_nonzero(sums > 0)) - int(np.count_nonzero(sums < 0))
    return TiesSurvey(thresholds, (balance > 0) - (balance < 0))


def _ranks(passes: DeltaPasses, params: TiesParams) -> Ranks:
    """By tensor and expert, the smallest magnitude that is kept."""

    def kept_of(deltas: Deltas, column: int, size: int) -> tuple[int]:
        density = deltas.of_experts(params)[column].density
        return (size - threshold_rank(size, density) + 1,)

    return tensor_ranks(passes, lambda deltas: deltas.values, kept_of)


def settle_ties(survey: TiesSurvey) -> tuple[TiesSurvey, list[tuple[str, int]]]:
    """The survey with the majority that was counted, and the parts to be merged again."""
    if survey.majority is not None:
        return survey, []
    balance = survey.votes.balance
    settled = TiesSurvey(survey.thresholds, (balance > 0) - (balance < 0))
    undecided = sorted(survey.votes.undecided.items())
    return settled, [place for place, taken in undecided if taken != settled.is_positive]


def trim(values: Sequence[Array], thresholds: Sequence[np.float32]) -> list[Array]:
    """Each expert's changes with those below its threshold set to zero.

    For a block the results are in memory that the next block reuses.
    """
    # A product instead of np.where, so that an allowed NaN is not silently trimmed.
    if values[0].dtype != np.float32 or values[0].ndim != 1 or values[0].size > BLOCK_SIZE:
        return [
            np.asarray(delta * (magnitudes(delta) >= threshold))
            for delta, threshold in zip(values, thresholds, strict=True)
        ]
    trimmed = []
    for number, (delta, threshold) in enumerate(zip(values, thresholds, strict=True)):
        kept = scratch("kept", delta.size, _BOOL)
        result = scratch(f"trimmed {number}", delta.size, delta.dtype)
        np.abs(delta, out=result)
        np.greater_equal(result, threshold, out=kept)
        trimmed.append(np.multiply(delta, kept, out=result))
    return trimmed


def elected_sums(trimmed: Sequence[Array], weights: Sequence[float], params: TiesParams) -> Array:
    """The sums whose signs are elected."""
    return weighted_sum(trimmed, weights if params.sign == "weighted" else [1.0] * len(trimmed))


def threshold_rank(count: int, density: float) -> int:
    """The rank of the threshold among magnitudes, smallest first, from 1; 0 keeps everything.

    As in the authors' code, the threshold itself is kept: int(count * density) + 1 entries stay,
    and all that tie with the last of them.
    """
    return count - int(count * density)


def model_thresholds(passes: DeltaPasses, params: TiesParams) -> tuple[np.float32, ...]:
    """Per expert, the smallest magnitude that is kept when the model is ranked as one vector."""
    if isinstance(passes, RankedPasses):

        def kept_of(count: int) -> int:
            return count - threshold_rank(count, params.density) + 1

        found = passes.thresholds(kept_of, only_changed=params.scope == "changed")
        if found is not None:
            return found

    def ranked() -> Iterator[list[Array]]:
        for deltas in passes():
            is_ranked = params.scope == "all" or deltas.changed()
            yield deltas.values if is_ranked else [delta.reshape(-1)[:0] for delta in deltas.values]

    return kth_magnitudes(ranked, lambda count: threshold_rank(count, params.density))
