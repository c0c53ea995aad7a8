"""How much of a change the factors of a LoRA keep, module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard


@dataclass(frozen=True)
class KeptShares:
    """The shares that factors of rank `rank` keep, in squared norms, each from 0 to 1.

    `kept` is the share of everything that changed, and `attainable` the share without a limit on
    the rank. `modules`: path -> the share of its own change that is kept; 1 if it did not change.
    `left_out`: tensor that changed and has no factors -> its share of everything that changed.
    """

    rank: int
    kept: float
    attainable: float
    modules: Mapping[str, float] = field(repr=False)
    left_out: Mapping[str, float] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The shares as JSON values, with six digits: the last ones differ between machines."""
        return {
            "rank": self.rank,
            "kept": _round(self.kept),
            "attainable": _round(self.attainable),
            "modules": {path: _round(share) for path, share in self.modules.items()},
            "left_out": {name: _round(share) for name, share in self.left_out.items()},
        }


def parse_shares(value: object) -> KeptShares | None:
    """The inverse of `to_json` for an untrusted value; None if it is anything else."""
    if not isinstance(value, Mapping):
        return None
    rank, kept, attainable = (value.get(key) for key in ("rank", "kept", "attainable"))
    modules, left_out = (_parse_by_name(value.get(key)) for key in ("modules", "left_out"))
    if type(rank) is not int or modules is None or left_out is None:
        return None
    if not (_is_share(kept) and _is_share(attainable)):
        return None
    return KeptShares(rank, float(kept), float(attainable), modules, left_out)


def _parse_by_name(value: object) -> dict[str, float] | None:
    if not isinstance(value, Mapping) or not all(map(_is_share, value.values())):
        return None
    return {str(name): float(share) for name, share in value.items()}


def _is_share(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value <= 1


def _round(share: float) -> float:
    return float(f"{share:.6g}")


@dataclass
class ShareCounter:
    """Adds up squared norms, module by module; `shares` are those of all that was added."""

    rank: int
    _squares: dict[str, tuple[float, float]] = field(default_factory=dict)
    _left_out: dict[str, float] = field(default_factory=dict)

    def add(self, path: str, squares: float, kept: float) -> None:
        """Count the squared norm of a module's change, and of what its factors keep."""
        self._squares[path] = squares, kept

    def leave_out(self, tensor: str, squares: float) -> None:
        """Count a tensor that has no factors."""
        if squares:
            self._left_out[tensor] = squares

    @property
    def total(self) -> float:
        """The squared norm of everything that changed."""
        return self._attainable + sum(self._left_out.values())

    @property
    def _attainable(self) -> float:
        return sum(squares for squares, _ in self._squares.values())

    def shares(self) -> KeptShares:
        """The shares; all is kept if nothing changed."""
        kept = sum(kept for _, kept in self._squares.values())
        return KeptShares(
            self.rank,
            _share(kept, self.total),
            _share(self._attainable, self.total),
            {path: _share(kept, squares) for path, (squares, kept) in self._squares.items()},
            {name: _share(squares, self.total) for name, squares in self._left_out.items()},
        )


def _share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole else 1.0
