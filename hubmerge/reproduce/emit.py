"""Units as jobs for a cluster that others run: levels of the plan, cut into pieces of some time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from hubmerge.reproduce.plan_cost import Pace
from hubmerge.reproduce.unit import Unit

PIECE_S = 3600.0  # a job that is much shorter waits longer than it works
_LEAST_S = 1800.0
_ROOM = 3  # times what is estimated, before a job is taken for stuck


@dataclass(frozen=True)
class Batch:
    """Jobs that may run at once and ask for the same; `pieces` are the keys of one job each."""

    level: int
    cpus: int
    gpus: int
    pieces: tuple[tuple[str, ...], ...]
    seconds: float

    @property
    def limit_s(self) -> int:
        """When a job of it is stopped, in whole minutes."""
        return 60 * math.ceil(max(_LEAST_S, _ROOM * self.seconds) / 60)


def batches(units: Sequence[Unit], pace: Pace, most: int) -> list[Batch]:
    """The units level by level, each level needing those before it; at most so many jobs each."""
    found = []
    for number, level in enumerate(levels(units)):
        for cpus, gpus in sorted({_shape(unit) for unit in level}):
            its = [unit for unit in level if _shape(unit) == (cpus, gpus)]
            pieces = list(_pieces(its, pace.seconds))
            for begin in range(0, len(pieces), most):
                found.append(_batch(number, cpus, gpus, pieces[begin : begin + most], pace))
    return found


def levels(units: Iterable[Unit]) -> list[list[Unit]]:
    """Units, given after those they need, by how many of each other they have to wait for."""
    place: dict[str, int] = {}
    found: list[list[Unit]] = []
    for unit in units:
        below = [place[one.key] for one in unit.needs.values() if one.key in place]
        level = place[unit.key] = max(below, default=-1) + 1
        if level == len(found):
            found.append([])
        found[level].append(unit)
    return found


def _shape(unit: Unit) -> tuple[int, int]:
    """CPUs and whole GPUs: schedulers know no parts."""
    return unit.cpus, math.ceil(unit.gpus)


def _pieces(units: Sequence[Unit], seconds: Callable[[Unit], float]) -> Iterator[list[Unit]]:
    """Units one after the other, as many as fill the time of a piece."""
    piece: list[Unit] = []
    for unit in units:
        if piece and sum(map(seconds, piece)) + seconds(unit) > PIECE_S:
            yield piece
            piece = []
        piece.append(unit)
    if piece:
        yield piece


def _batch(level: int, cpus: int, gpus: int, pieces: Sequence[Sequence[Unit]], pace: Pace) -> Batch:
    longest = max(sum(map(pace.seconds, piece)) for piece in pieces)
    keys = tuple(tuple(unit.key for unit in piece) for piece in pieces)
    return Batch(level, cpus, gpus, keys, longest)
