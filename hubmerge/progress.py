"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# What is being done, how much of it is done, how much there is in all.
Progress = Callable[[str, int, int], None]
