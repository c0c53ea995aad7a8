"""What a lock records as evidence for its choice: the cross-fitted gain and the controls."""

from __future__ import annotations

import dataclasses

from hubmerge.lock import Control, CrossFitted, Lock, Outcome
from hubmerge.selection import noise
from hubmerge.selection.controls import BASE, Controls, MeasuredControl
from hubmerge.selection.cross_fit import CrossFit
from hubmerge.selection.fold_gain import fold_gain
from hubmerge.selection.noise import Interval
from hubmerge.selection.policy_results import LOCKED
from hubmerge.selection.seed_spread import SeedSpread


def find_outcome(gain: Interval | None) -> Outcome:
    """Return gain or loss if the interval lies on one side of zero, else inconclusive."""
    if gain is not None and gain[1] > 0:
        return "gain"
    return "loss" if gain is not None and gain[2] < 0 else "inconclusive"


def with_evidence(
    lock: Lock, fit: CrossFit, controls: Controls, spread: SeedSpread | None = None
) -> Lock:
    """Return the lock with the choices of both halves and the controls.

    A choice that beats the last steps but not the base gains nothing: the outcome is inconclusive.
    Against an earlier lock the base does not count: what is in use may be worse than the base.
    """
    rival = fit.policy(lock.rival)
    assert rival is not None  # without it there is no fit
    recorded = tuple(_describe_control(control, fit, lock.seed) for control in controls.measured)
    is_worthless = lock.rival != LOCKED and any(
        control.kind == BASE and control.gain[1] <= 0 for control in recorded
    )
    outcome: Outcome | None = "inconclusive" if is_worthless and lock.conclusive else lock.outcome
    return dataclasses.replace(
        lock,
        outcome=outcome,
        conclusive=outcome == "gain",
        cross_fit=CrossFitted(
            chosen=tuple(search.chosen.name for search in fit.searches),
            steps=tuple(_steps(fit, number) for number in range(len(fit.searches))),
            accuracy=fit.chosen().accuracy,
            rival=rival.accuracy,
            counts=noise.paired_counts(fit.chosen(), rival),
            seed_stderr=spread.deviation if spread else None,
        ),
        controls=recorded,
        left_out=controls.left_out,
        predicted_gain=controls.predicted_gain,
    )


def _steps(fit: CrossFit, number: int) -> tuple[int, ...]:
    return fit.pool.steps(fit.searches[number].chosen.result.choice)


def _describe_control(control: MeasuredControl, fit: CrossFit, seed: int) -> Control:
    gain = fold_gain(fit.chosen(), control.trial, seed)
    return Control(control.kind, control.name, control.trial.accuracy, gain)
