"""Two splits of mini-mnist, loaded once."""

import pytest

from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.lookup import find_task


@pytest.fixture(scope="session")
def training() -> Split:
    return load_split(find_task("mini-mnist"), "train")


@pytest.fixture(scope="session")
def validation() -> Split:
    """The first thirty rows."""
    return load_split(find_task("mini-mnist"), "validation").select(range(30))


@pytest.fixture(scope="session")
def long_validation() -> Split:
    """The first hundred rows, enough for a curve."""
    return load_split(find_task("mini-mnist"), "validation").select(range(100))
