"""Every test gets a home of its own: no account, no cache, no network but loopback."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Two workers on two cores: more threads than that only wait for each other. Before torch is there.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Read once, when the libraries are imported: one cache for the whole run, and not the user's.
_cache = tempfile.TemporaryDirectory(prefix="hubmerge-tests-")
os.environ["HF_HOME"] = _cache.name

# One file is one worker's: begun last, the longest would leave the other without work.
_LONGEST = ("test_readme.py", "test_upcycle.py", "test_killed.py", "test_processes.py")
_LEAVE_OUT = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HUBMERGE_HUB")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, where hubmerge and the Hub's client keep what they keep."""
    folder = tmp_path_factory.mktemp("home")
    for name in _LEAVE_OUT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("HUBMERGE_HOME", str(folder / "hubmerge"))
    return folder
