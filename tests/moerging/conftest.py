"""Networks that are written once for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.moerging.networks import NetworkFolders


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> NetworkFolders:
    return NetworkFolders(tmp_path_factory.mktemp("networks"))
