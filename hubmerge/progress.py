"""The type of progress callbacks."""

from __future__ import annotations

from collections.abc import Callable

# Called with what is being done, the amount done and the total amount.
Progress = Callable[[str, int, int], None]
