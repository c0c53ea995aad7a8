"""What `datasets` prepares in these tests goes with them."""

from pathlib import Path

import datasets
import pytest


@pytest.fixture(autouse=True)
def prepared(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
