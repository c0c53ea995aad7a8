"""A place that is empty."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty folder; the test's own also holds its home."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder
