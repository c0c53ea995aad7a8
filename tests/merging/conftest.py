"""Fixtures that write models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hubmerge.merging.plan import MergePlan

from .builders import draw_large, write_models


@pytest.fixture
def save_models(tmp_path: Path) -> Callable[..., Callable[..., MergePlan]]:
    """`write_models` with the test's own folder as root."""
    return lambda base, *experts: write_models(tmp_path, base, *experts)


@pytest.fixture(scope="session")
def large_models(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[type], Callable[..., MergePlan]]:
    """`draw_large` of a dtype, written once: no merge changes its inputs."""

    @cache
    def write(dtype: type) -> Callable[..., MergePlan]:
        return write_models(tmp_path_factory.mktemp("models"), *draw_large(np.dtype(dtype)))

    return write
