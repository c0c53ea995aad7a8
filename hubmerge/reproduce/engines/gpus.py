"""The GPUs of a machine, given to units as whole devices or as fractions of one."""

from __future__ import annotations

from collections.abc import Iterable

_TOLERANCE = 1e-6  # so that three thirds are a whole GPU


class GpuPool:
    """The free fraction of each device."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._free = dict.fromkeys(ids, 1.0)

    def __len__(self) -> int:
        return len(self._free)

    def has_free(self, share: float) -> bool:
        """Whether `acquire` would succeed."""
        return len(self._candidates(share)) == _device_count(share)

    def acquire(self, share: float) -> tuple[str, ...]:
        """Take whole devices, or a fraction of one; returns their ids, none for a share of 0."""
        ids = self._candidates(share)
        for device in ids:
            self._free[device] -= min(share, 1.0)
        return ids

    def release(self, share: float, ids: Iterable[str]) -> None:
        """Return what was acquired."""
        for device in ids:
            self._free[device] += min(share, 1.0)

    def _candidates(self, share: float) -> tuple[str, ...]:
        wanted = min(share, 1.0) - _TOLERANCE
        fits = [device for device, free in self._free.items() if free >= wanted]
        fits.sort(key=lambda device: self._free[device])  # used ones first, so that some stay whole
        return tuple(fits[: _device_count(share)])


def _device_count(share: float) -> int:
    """How many devices a share needs; only shares below 1 may be fractions."""
    return 0 if share == 0 else max(1, round(share))
