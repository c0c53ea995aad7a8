"""The policies that choose steps: common practice, the paper's, and what goes beyond it.

A policy is a function from a search to the best choice that it finds. Each tunes the parameters of
the method on validation data, as in appendix C of arXiv 2506.14126.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import plain_choice
from hubmerge.selection.moves import (
    all_moves,
    common_moves,
    step_moves,
    step_probes,
    weight_moves,
    weight_probes,
)
from hubmerge.selection.search import MeasuredChoice, Search
from hubmerge.selection.surrogate_search import search_by_surrogate

_STRIDES = (2, 1)  # in the grid, from a start without data
_NEAR_STRIDES = (1,)  # from the parameters of a neighbouring step
_SPANS = (2, 3, 4)  # steps that are averaged
_PATIENCE_AT_THE_END = 8  # of `uniform`
_KEEP_FRACTIONS = (0.5, 0.3, 0.2, 0.1)  # of an expert's changes
GROUPS = 3  # of layers: early, middle and late
_LAYER_FACTORS = (1.5, 1 / 1.5, 1.2, 1 / 1.2)  # on the scale of one group
_INTRUDERS = (0.9, 0.75)  # factors on intruder dimensions; near 1, as they also hold the base


def last(search: Search) -> MeasuredChoice:
    """Choose every expert's last step: common practice."""
    return _tune_from(search, tuple(len(steps) - 1 for steps in search.pool.candidates))


def best_expert(search: Search, own_accuracy: Callable[[int, int], float]) -> MeasuredChoice:
    """Choose each expert's best step on its own task, the earliest of equals.

    `own_accuracy` returns the accuracy of a candidate on its own task, given the task's and its
    index.
    """
    indices = []
    for task, steps in enumerate(search.pool.candidates):
        accuracies = [own_accuracy(task, index) for index in range(len(steps))]
        indices.append(accuracies.index(max(accuracies)))
    return _tune_from(search, tuple(indices))


def early_stop(search: Search) -> MeasuredChoice | None:
    """Choose where early stopping ended each run; None if a run was not stopped early."""
    indices = [_early_stop_index(steps) for steps in search.pool.candidates]
    known = [index for index in indices if index is not None]
    return _tune_from(search, tuple(known)) if len(known) == len(indices) else None


def uniform(search: Search) -> Iterator[MeasuredChoice]:
    """Yield every common step, first as it is and then tuned: the paper's policy.

    The first is the one nearest to the best choice so far, by default the last. It is tuned, and
    the others are measured with its parameters, nearest first; then they are tuned, the best first.
    At the end the best of them is tuned once more, with all common steps as its neighbours.
    """
    common = search.pool.common_steps()
    tuned: dict[int, MeasuredChoice] = {}
    for number in _outward(len(common), _first_common(search)):
        if tuned:
            params = dict(next(iter(tuned.values())).choice.params)
            tuned[number] = search.measure_all_rows(plain_choice(common[number], params))
        else:
            tuned[number] = _tune_from(search, common[number])
        yield tuned[number]
    others = list(tuned)[1:]
    for number in sorted(others, key=lambda number: search.rank(tuned[number]), reverse=True):
        tuned[number] = search.tune(tuned[number], _NEAR_STRIDES)
        yield tuned[number]
    if tuned:
        best = earliest_best(search, tuned.values())
        better = search_by_surrogate(search, best, common_moves, _PATIENCE_AT_THE_END)
        if better is not best:
            yield better


def earliest_best(search: Search, measured: Iterable[MeasuredChoice]) -> MeasuredChoice:
    """Return the best of these choices, of equals the one with the earliest steps."""
    return max(measured, key=search.rank)


def coordinate(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Choose a separate step for each task."""
    return search_by_surrogate(search, start, step_moves, probes=step_probes)


def weights(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Choose a separate weight for each task at the steps of the start: a strong baseline."""
    return search_by_surrogate(search, start, weight_moves, probes=weight_probes)


def joint(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Choose steps and weights together."""
    return search_by_surrogate(search, start, all_moves)


def average_last(search: Search, start: MeasuredChoice, by_loss: bool = False) -> MeasuredChoice:
    """Average the last steps of each expert, or those around its chosen step, before merging.

    The mean is plain, or with `by_loss` weighted by training losses. Sources: arXiv 2507.17634,
    2505.12082.
    """
    pool, best = search.pool, start
    for span in _SPANS:
        choice = plain_choice(
            tuple(len(steps) - 1 for steps in pool.candidates), dict(start.choice.params)
        )
        choice = replace(choice, by_loss=by_loss)
        for task, index in enumerate(choice.indices):
            choice = choice.with_window(task, index, span)
        best = search.better_of(choice, best)
    for task, steps in enumerate(pool.candidates):
        index = best.choice.indices[task]
        for last, span in ((index, 2), (index + 1, 2), (index + 1, 3)):
            if last < len(steps):
                moved = replace(best.choice.with_window(task, last, span), by_loss=by_loss)
                best = search.better_of(moved, best)
    return best if best is start else search.tune(best, _NEAR_STRIDES)


def average_by_loss(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """As `average_last`, with steps weighted by the inverse of their training loss.

    Source: metrics-weighted averaging, arXiv 2504.18580.
    """
    return average_last(search, start, by_loss=True)


def greedy_soup(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Leave out experts, one after another, as long as the merge becomes better without one.

    Each expert that was left out may join again at an earlier step. Source of the idea: greedy
    soups, arXiv 2203.05482, which leave out what does not help.
    """
    best, fewest = start, max(search.evaluator.method.fewest, 1)
    while sum(weight != 0 for weight in best.choice.weights) > fewest:
        previous = best
        for task, weight in enumerate(best.choice.weights):
            if weight and sum(w != 0 for w in best.choice.weights) > fewest:
                best = search.better_of(best.choice.with_weight(task, 0.0), best)
        if best is previous:
            break
    for task, weight in enumerate(best.choice.weights):
        for index in range(start.choice.indices[task]) if not weight else ():
            joined = best.choice.with_candidate(task, index).with_weight(task, 1.0)
            best = search.better_of(joined, best)
    return best if best is start else search.tune(best, _NEAR_STRIDES)


def layers(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Choose the scale of early, middle and late layers, one after another, from one scale for all.

    Between these it is interpolated; tensors outside of the layers keep the one scale. The experts
    share it: each of them would need more validation rows. The method has a scale, and the model
    three layers or more. Source of the idea: arXiv 2310.02575, which learns a coefficient for every
    layer without labels.
    """
    count, scale = search.pool.layer_count, dict(start.choice.params)["scale"]
    name, best, scales = f"scale[@0:{count}]", start, (scale,) * GROUPS
    for group in range(GROUPS):
        for factor in _LAYER_FACTORS:
            moved = [*scales[:group], round(scales[group] * factor, 4), *scales[group + 1 :]]
            best = search.better_of(start.choice.with_params(**{name: moved}), best)
        scales = dict(best.choice.params).get(name, scales)
    return best


def rescale(search: Search, start: MeasuredChoice) -> MeasuredChoice:
    """Imitate early stopping: weight and trim task vectors, and damp intruder dimensions.

    This is for repositories that have only a final checkpoint.
    """
    best = weights(search, start)
    for task in range(len(search.pool.tasks)):
        kept = (best.choice.with_keep(task, keep) for keep in _KEEP_FRACTIONS)
        best = search.best_of(kept, best)
        damped = (best.choice.with_intruders(task, factor) for factor in _INTRUDERS)
        best = search.best_of(damped, best)
    return search.tune(best, (1,))


def _tune_from(search: Search, indices: tuple[int, ...]) -> MeasuredChoice:
    return search.tune(search.measure_start(indices), _STRIDES)


def _early_stop_index(candidates: Sequence[Candidate]) -> int | None:
    return next(
        (index for index, candidate in enumerate(candidates) if candidate.stopped_early), None
    )


def _first_common(search: Search) -> int:
    """Return the number of the common step nearest to the best choice so far, else the last."""
    common = search.pool.common_steps()
    complete = [
        MeasuredChoice(choice, trial)
        for choice, trial in search.trials.items()
        if trial.is_complete
    ]
    if not complete:
        return len(common) - 1
    wanted = search.pool.lateness(earliest_best(search, complete).choice)
    distances = [
        abs(search.pool.lateness(plain_choice(indices, {})) - wanted) for indices in common
    ]
    return distances.index(min(distances, default=0.0)) if distances else 0


def _outward(count: int, first: int) -> list[int]:
    """Return the numbers below `count`, those nearest to `first` first, the earlier of two."""
    return sorted(range(count), key=lambda number: (abs(number - first), number))
