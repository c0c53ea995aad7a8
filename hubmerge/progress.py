"""The type of progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

# Called with what is being done, the amount done and the total amount, 0 if that is not known;
# amounts of more than a million are bytes.
Progress = Callable[[str, int, int], None]
MOST_COUNTED = 1_000_000


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


class ByteProgress:
    """Reports bytes that are done, of a total."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage = progress, stage
        self._done, self._total = 0, total
        progress(stage, 0, self._total)

    def add(self, nbytes: int) -> None:
        """Report that many bytes more."""
        self._done += nbytes
        self._progress(self._stage, self._done, self._total)
