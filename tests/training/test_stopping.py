"""Early stopping: plateaus and the noise rule."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.training.stopping import patience_exhausted, plateau_factor

CURVES = st.lists(st.integers(0, 20).map(lambda n: n / 20), max_size=40)


@pytest.mark.parametrize(
    ("curve", "share"),
    [
        ([], 1.0),
        ([0.5, 0.6, 0.7], 1.0),
        ([0.5, 0.5, 0.5], 1.0),  # only two in a row that do not beat the first
        ([0.5, 0.5, 0.5, 0.5], 0.5),
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.2, 0.3], 0.25),  # two plateaus of three
        ([0.5, 0.4, 0.4, 0.6, 0.5, 0.5], 1.0),  # the third evaluation is better
        ([0.5, 0.4, 0.4, 0.4, 0.6, 0.5, 0.5], 0.5),
    ],
)
def test_plateaus_by_hand(curve: list[float], share: float) -> None:
    assert plateau_factor(curve, patience=3, factor=0.5) == share


@given(CURVES, st.integers(1, 5))
def test_plateaus_match_torch(curve: list[float], patience: int) -> None:
    """Halving at the third bad evaluation is a patience of two in torch."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience - 1, threshold=0.0, eps=0.0
    )
    for number, accuracy in enumerate(curve, start=1):
        scheduler.step(accuracy)
        assert plateau_factor(curve[:number], patience, 0.5) == optimizer.param_groups[0]["lr"]


def test_noise_by_hand() -> None:
    # At 0.8 over 100 examples a standard error is 0.04.
    assert not patience_exhausted([0.8, 0.83, 0.83], count=100, patience=3, band=1.0)
    assert patience_exhausted([0.8, 0.83, 0.83, 0.84], count=100, patience=3, band=1.0)
    assert not patience_exhausted([0.8, 0.83, 0.83, 0.85], count=100, patience=3, band=1.0)
    # A slow rise counts once it adds up, though no single evaluation beats the noise.
    rise = list(accumulate([0.8, *[0.015] * 9]))
    assert not patience_exhausted(rise, count=100, patience=3, band=1.0)
    assert patience_exhausted(rise, count=100, patience=3, band=4.0)


@given(CURVES, st.integers(1, 6))
def test_a_band_of_zero_is_plain_patience(curve: list[float], patience: int) -> None:
    best, bad = -math.inf, 0
    for accuracy in curve:
        best, bad = (accuracy, 0) if accuracy > best else (best, bad + 1)
    assert patience_exhausted(curve, 100, patience, band=0.0) == (bad >= patience)
