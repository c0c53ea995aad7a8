"""The number of threads of a unit, in the environment variables that libraries read at import."""

from __future__ import annotations

_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def thread_environment(cpus: int) -> dict[str, str]:
    """Variables that set exactly this number of threads, as another number changes bits."""
    environment = {name: str(cpus) for name in _VARIABLES}
    return environment | {"OMP_DYNAMIC": "FALSE", "MKL_DYNAMIC": "FALSE"}
