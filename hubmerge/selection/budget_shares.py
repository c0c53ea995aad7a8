"""How the budget of a selection is divided between finding a choice and judging it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from hubmerge.selection.cross_fit import FOLDS
from hubmerge.selection.search import Budget

_SEARCH, _FOLDS = 1 / 2, 1 / 4  # and what is left, at least a quarter, for the controls


@dataclass(frozen=True)
class BudgetShares:
    """Half of the budget is for the search, a quarter for the folds, the rest for the controls.

    Merges are counted once, whichever search measures them first, so the searches of the folds pay
    only for what the search did not measure. What one part leaves over, the next may use. None is
    no limit.
    """

    merges: int | None = None
    seconds: float | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.started

    def search(self) -> Budget:
        """Return the budget of the search on all rows."""
        return self._budget(self._merges_until(_SEARCH), _SEARCH)

    def fold(self, number: int) -> tuple[Budget, int | None]:
        """Return the budget of the search of a fold, and how many merges there may be at its end.

        Its own merges are limited as those of the search on all rows, so that it searches alike.
        """
        end = _SEARCH + _FOLDS * (number + 1) / FOLDS
        return self._budget(self._merges_until(_SEARCH), end), self._merges_until(end)

    def controls(self) -> Budget:
        """Return the budget of the controls, which may use all that is left."""
        return self._budget(self.merges, 1.0)

    def _merges_until(self, share: float) -> int | None:
        return None if self.merges is None else max(1, int(share * self.merges))

    def _budget(self, merges: int | None, share: float) -> Budget:
        seconds = None if self.seconds is None else max(share * self.seconds - self.spent_s, 0.0)
        return Budget(merges, seconds)
