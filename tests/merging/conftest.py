"""Small worlds, below the test's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hubmerge.merging.engine import MergePlan

from .worlds import make_world


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty folder; the test's own also holds its home."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def world(here: Path) -> Callable[..., Callable[..., MergePlan]]:
    """make_world below an empty folder."""
    return lambda base, *experts: make_world(here, base, *experts)
