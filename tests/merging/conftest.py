"""Small worlds, below the test's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hubmerge.merging.plan import MergePlan

from .worlds import make_world


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., Callable[..., MergePlan]]:
    """make_world below an empty folder."""
    return lambda base, *experts: make_world(tmp_path, base, *experts)
