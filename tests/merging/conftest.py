"""A fixture that writes small models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hubmerge.merging.plan import MergePlan

from .builders import write_models


@pytest.fixture
def save_models(tmp_path: Path) -> Callable[..., Callable[..., MergePlan]]:
    """`write_models` with the test's own folder as root."""
    return lambda base, *experts: write_models(tmp_path, base, *experts)
