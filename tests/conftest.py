"""Every test has a home folder of its own: no account, no cache, no network except loopback."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hubmerge.server import lease
from tests.warm_python import import_everything, serve_warm_python

_MEMORY = Path("/dev/shm")


def _is_roomy(folder: Path) -> bool:
    """Whether the folder can hold the files of all tests, and programs among them."""
    if not os.access(folder, os.W_OK):
        return False
    status = os.statvfs(folder)
    free = min(status.f_bavail * status.f_frsize, psutil.virtual_memory().available)
    return free > 4 << 30 and not status.f_flag & os.ST_NOEXEC


# Files are written to last: on a disk the tests would wait a minute for it.
if "TMPDIR" not in os.environ and _is_roomy(_MEMORY):
    tempfile.tempdir = os.environ["TMPDIR"] = str(_MEMORY)
# Every worker and every command would compile all modules anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Two workers on two cores: more threads would only wait. Set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"  # the embedded Hub has no Xet write side
# The libraries read it once, at import: one cache for all tests, and not the user's.
_cache = tempfile.TemporaryDirectory(prefix="hubmerge-tests-")
os.environ["HF_HOME"] = _cache.name

# A worker runs whole files: if the slowest came last, the other worker would have no work.
_SLOWEST = ("test_kinds.py", "test_select.py", "test_recipe_units.py", "test_export.py")
_UNSET = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HUBMERGE_HUB")


def pytest_configure(config: pytest.Config) -> None:
    """Set up Hypothesis where tests run: the process that only starts workers starts sooner."""
    if not config.getoption("numprocesses", None):
        from hypothesis import settings

        # A slow machine must not fail a test. `make test-slow` tries more examples, and new ones.
        settings.register_profile("fast", deadline=None, derandomize=True, max_examples=25)
        settings.register_profile("thorough", deadline=None)
        settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files."""
    items.sort(key=lambda item: item.path.name not in _SLOWEST)


def pytest_collection_finish() -> None:
    """Keep what was imported out of later collections: Accelerate collects after every run."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # whole files: sooner or later it imports all of these
        import_everything()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of new home folders. Most tests write nothing there, so they are not made."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def home_path(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test, for hubmerge and for the client of the Hub."""
    folder = next(homes)
    for name in _UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("HUBMERGE_HOME", str(folder / "hubmerge"))
    return folder


@pytest.fixture
def home(home_path: Path) -> Path:
    """The home folder, which is empty."""
    home_path.mkdir()
    return home_path


@pytest.fixture(scope="session")
def running_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A hubmerge home whose embedded Hub runs until the last test."""
    folder = tmp_path_factory.mktemp("running")
    with lease(folder / "hub"):
        yield folder


@pytest.fixture
def running_hub(running_home: Path, home_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one Hub for many tests that publish nothing: a command alone starts one, in a second."""
    monkeypatch.setenv("HUBMERGE_HOME", str(running_home))


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A python that has imported torch and hubmerge; beside it is a `hubmerge`, for the PATH."""
    with serve_warm_python(tmp_path_factory.mktemp("warm")) as folder:
        yield folder / "python"


@pytest.fixture
def warm_processes(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that hubmerge starts are warm, too."""
    monkeypatch.setattr(sys, "executable", str(python))
