"""Each method on numbers that can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hubmerge.merging.deltas import Deltas
from hubmerge.merging.methods import average, dare, task_arithmetic
from hubmerge.merging.params import DareParams, NoParams, TaskArithmeticParams, TiesParams
from hubmerge.merging.registry import method, parse_params
from hubmerge.merging.ties import TiesSurvey, survey_ties, threshold_rank, ties


def make_deltas(*values: list[float], weights: tuple[float, ...] = (), tensor: str = "w") -> Deltas:
    return Deltas(
        tensor=tensor,
        values=[np.float32(v) for v in values],
        weights=weights or (1.0,) * len(values),
        shas=tuple(f"{i:040x}" for i in range(len(values))),
    )


def run_ties(deltas: Deltas, **params: object) -> list[float]:
    chosen = TiesParams(**params)  # type: ignore[arg-type]
    return ties(deltas, chosen, survey_ties(lambda: [deltas], chosen)).tolist()


def test_average_divides_by_the_weights() -> None:
    # (1 * 2 + 3 * 6) / (1 + 3) = 20 / 4;  (1 * -4 + 3 * 0) / 4 = -1
    assert average(make_deltas([2, -4], [6, 0], weights=(1, 3)), NoParams()).tolist() == [5, -1]


def test_task_arithmetic_does_not() -> None:
    # 0.5 * (1 * 2 + -3 * 6) = 0.5 * -16;  0.5 * (1 * -4 + -3 * 0) = -2
    deltas = make_deltas([2, -4], [6, 0], weights=(1, -3))
    assert task_arithmetic(deltas, TaskArithmeticParams(scale=0.5)).tolist() == [-8, -2]


def test_ties_trims_elects_and_averages_agreeing_changes() -> None:
    # density 0.5 of 4: rank 4 - 2 = 2, so the 2nd smallest magnitude and all above it stay (3):
    #   [5, 1, -2, 4] -> threshold 2 -> [5, 0, -2, 4]
    #   [3, 2, 6, -1] -> threshold 2 -> [3, 2, 6, 0]
    #   [-4, 0.5, 1, -7] -> threshold 1 -> [-4, 0, 1, -7]
    # sums [4, 2, 5, -3] elect + + + -;  means of those that agree: (5+3)/2, 2, (6+1)/2, -7
    deltas = make_deltas([5, 1, -2, 4], [3, 2, 6, -1], [-4, 0.5, 1, -7])
    assert run_ties(deltas, density=0.5) == [4, 2, 3.5, -7]
    assert run_ties(deltas, density=0.5, scale=0.5) == [2, 1, 1.75, -3.5]


def test_ties_weights_count_in_the_mean_and_optionally_in_the_election() -> None:
    deltas = make_deltas([4, 3], [-5, 3], weights=(3, 1))
    # sums [-1, 6] elect - +:  -5 alone; (3*3 + 1*3) / 4 = 3
    assert run_ties(deltas, density=1) == [-5, 3]
    # weighted sums [3*4 - 5, 12] = [7, 12] elect + +:  4 alone; 3
    assert run_ties(deltas, density=1, sign="weighted") == [4, 3]
    # (3*2 + 1*6) / 4 = 3
    assert run_ties(make_deltas([2], [6], weights=(3, 1)), density=1) == [3]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (1.0, 2.0),  # one + elsewhere: the zero sum of 2 and -2 takes +, and 2 is the mean
        (-1.0, -2.0),
        (0.0, -2.0),  # no majority at all: the authors' code selects the negative ones
    ],
)
def test_ties_gives_exact_zero_sums_the_majority_sign(rest: float, expected: float) -> None:
    assert run_ties(make_deltas([2, rest], [-2, rest]), density=1)[0] == expected


def test_ties_majority_is_over_all_tensors() -> None:
    first, second = make_deltas([2], [-2], tensor="a"), make_deltas([1, 1], [1, 1], tensor="b")
    params = TiesParams(density=1)
    survey = survey_ties(lambda: [first, second], params)
    assert survey.majority == 1
    assert ties(first, params, survey).tolist() == [2]


def test_ties_rank_equals_the_authors() -> None:
    # int(642 * 0.2) = 128, and the threshold itself stays: 129 entries (facts: goldens.json)
    assert threshold_rank(642, 0.2) == 514
    assert 642 - threshold_rank(642, 0.2) + 1 == 129
    assert threshold_rank(10, 1.0) == 0


def test_ties_keeps_all_that_tie_at_the_threshold() -> None:
    # density 0.2 of 5: rank 4: the 4th smallest of [1, 2, 2, 2, 2] is 2: four entries stay
    assert run_ties(make_deltas([2, -2, 2, 1, 2]), density=0.2) == [2, -2, 2, 0, 2]


def test_ties_ranks_over_the_model_or_within_each_tensor() -> None:
    large, small = make_deltas([10, 20], tensor="a"), make_deltas([1, 2], tensor="b")
    model, tensor = TiesParams(density=0.4), TiesParams(density=0.4, trim="tensor")
    # model: rank 4 - int(1.6) = 3: threshold 10.  tensor: rank 2 - int(.8) = 2: 20 and 2.
    survey = survey_ties(lambda: [large, small], model)
    assert survey == TiesSurvey((np.float32(10),), 1)
    assert ties(large, model, survey).tolist() == [10, 20]
    assert ties(small, model, survey).tolist() == [0, 0]
    survey = survey_ties(lambda: [large, small], tensor)
    assert ties(large, tensor, survey).tolist() == [0, 20]
    assert ties(small, tensor, survey).tolist() == [0, 2]


def test_ties_scope_excludes_untrained_tensors() -> None:
    trained, frozen = make_deltas([1, 2, 3, 4], [0, 0, 0, 0]), make_deltas([0] * 6, [0] * 6)
    # changed: rank 4 - int(4 * .5) = 2: threshold 2.  all: rank 10 - 5 = 5: but 6 are zero: 0.
    for scope, threshold in (("changed", 2), ("all", 0)):
        survey = survey_ties(lambda: [trained, frozen], TiesParams(density=0.5, scope=scope))
        assert survey.thresholds == (threshold, 0)


def test_ties_of_unchanged_experts() -> None:
    assert run_ties(make_deltas([0, 0], [0, 0])) == [0, 0]


def test_dare_keeps_a_fraction_and_rescales_it() -> None:
    deltas = make_deltas([1.0] * 10_000)
    merged = dare(deltas, DareParams(density=0.25, scale=0.5))
    assert set(merged.tolist()) == {0.0, 2.0}  # 1 / 0.25 * 0.5
    assert np.count_nonzero(merged) == pytest.approx(2500, abs=130)  # 3 standard deviations


def test_dare_rescales_to_the_original_norm() -> None:
    deltas = make_deltas(np.random.default_rng(0).normal(size=999).tolist())
    merged = dare(deltas, DareParams(density=0.3, rescale="l1"))
    assert np.abs(merged).sum() == pytest.approx(np.abs(deltas.values[0]).sum(), rel=1e-5)
    assert 0 < np.count_nonzero(merged) < 400
    assert dare(make_deltas([0.0, 0.0]), DareParams(rescale="l1")).tolist() == [0, 0]


def test_dare_with_density_1_is_task_arithmetic() -> None:
    deltas = make_deltas([1, -2], [3, 4], weights=(2, -1))
    assert dare(deltas, DareParams(density=1)).tolist() == [-1, -8]


@pytest.mark.parametrize("name", ["average", "task_arithmetic", "ties", "dare"])
def test_scalars_are_tensors_too(name: str) -> None:
    chosen = method(name)
    params = parse_params(chosen, {} if name == "average" else {"scale": 1})
    deltas = Deltas("s", [np.array(2, np.float32)] * 2, (1.0, 1.0), ("a", "b"))
    survey = chosen.survey(lambda: [deltas], params) if chosen.survey else None
    assert np.asarray(chosen.combine(deltas, params, survey)).dtype == np.float32
