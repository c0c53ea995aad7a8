"""The GPUs of a machine, shared out: whole ones, or parts of one."""

from __future__ import annotations

from collections.abc import Iterable

_CLOSE = 1e-6  # thirds of a GPU make a whole one


class Gpus:
    """Which devices are free, and how much of each."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._free = dict.fromkeys(ids, 1.0)

    def __len__(self) -> int:
        return len(self._free)

    def free(self, share: float) -> bool:
        """Whether `take` would find as much."""
        return len(self._places(share)) == _number(share)

    def take(self, share: float) -> tuple[str, ...]:
        """The ids of whole devices, or of the one that a part is taken of; none for 0."""
        places = self._places(share)
        for place in places:
            self._free[place] -= min(share, 1.0)
        return places

    def give(self, share: float, places: Iterable[str]) -> None:
        """Give back what was taken."""
        for place in places:
            self._free[place] += min(share, 1.0)

    def _places(self, share: float) -> tuple[str, ...]:
        fits = [place for place, free in self._free.items() if free >= min(share, 1.0) - _CLOSE]
        fits.sort(key=lambda place: self._free[place])  # parts together, so that some stay whole
        return tuple(fits[: _number(share)])


def _number(share: float) -> int:
    """Of how many devices a share is: parts of more than one do not exist."""
    return 0 if share == 0 else max(1, round(share))
