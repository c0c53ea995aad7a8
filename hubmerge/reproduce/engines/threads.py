"""How many threads a unit computes with, said where libraries look as they are imported."""

from __future__ import annotations

_SAID = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def threads(cpus: int) -> dict[str, str]:
    """Environment variables for exactly that many: a library that took fewer would change bits."""
    number = {name: str(cpus) for name in _SAID}
    return number | {"OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE"}
