"""A temporary cache of `datasets` for every test."""

from pathlib import Path

import datasets
import pytest


@pytest.fixture(autouse=True)
def datasets_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
