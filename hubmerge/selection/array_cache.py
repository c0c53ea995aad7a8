"""Arrays by key in a bounded amount of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection

from hubmerge.weights.dtypes import Array


class ArrayCache:
    """Arrays by owner and name, up to `max_bytes`, for several threads.

    The oldest use is dropped first, but no array of the owners that are `needed` now: each pass
    over a model would drop what the next one reads first. What then finds no room is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes, self._lock = max_bytes, 0, threading.Lock()
        self._arrays: OrderedDict[tuple[str, str], Array] = OrderedDict()
        self._needed: frozenset[str] = frozenset()

    def need(self, owners: Collection[str]) -> None:
        """Keep the arrays of these owners, and of no others, from being dropped."""
        self._needed = frozenset(owners)

    def get(self, key: tuple[str, str]) -> Array | None:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: tuple[str, str], array: Array) -> None:
        with self._lock:
            known = self._arrays.pop(key, None)
            self._bytes -= 0 if known is None else known.nbytes
            excess = self._bytes + array.nbytes - self._max_bytes
            dropped = []
            for other, kept in self._arrays.items():
                if excess <= 0:
                    break
                if other[0] not in self._needed:
                    dropped.append(other)
                    excess -= kept.nbytes
            if excess > 0:
                return
            for other in dropped:
                self._bytes -= self._arrays.pop(other).nbytes
            self._arrays[key] = array
            self._bytes += array.nbytes
