"""The type of progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

# Called with what is being done, the amount done and the total amount; amounts of more than a
# million are bytes.
Progress = Callable[[str, int, int], None]
MOST_COUNTED = 1_000_000
