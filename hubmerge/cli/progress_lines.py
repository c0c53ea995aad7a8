"""Progress in a log: a line from time to time, in place of a bar."""

from __future__ import annotations

import time
from collections.abc import Callable

from hubmerge.byte_sizes import format_bytes
from hubmerge.progress import MOST_COUNTED

_EVERY_S = 60.0


class ProgressLines:
    """Writes one line a minute on what is being done; nothing within the first minute."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._last = clock()

    def __call__(self, description: str, done: int, total: int) -> None:
        now = self._clock()
        if now - self._last >= _EVERY_S:
            self._last = now
            self._write(f"{description}: {format_amount(done, total)}")


def format_amount(done: int, total: int) -> str:
    """How much is done of a total: `3/12`, of bytes `1.2 GB of 3.0 GB`; `3` if it is not known."""
    if not total:
        return str(done)
    if total <= MOST_COUNTED:
        return f"{done}/{total}"
    return f"{format_bytes(done)} of {format_bytes(total)}"
