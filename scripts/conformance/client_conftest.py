"""Fixtures that the client library's own tests expect, here for the embedded Hub.

The source distribution has the tests without their conftest. This file is copied beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, RepoUrl, constants
from huggingface_hub.utils._runtime import is_xet_available

from .testing_constants import ENDPOINT_STAGING, TOKEN, USER
from .testing_utils import repo_name

RepoFactory = Callable[..., RepoUrl]


@pytest.fixture(scope="session")
def api() -> HfApi:
    """A client with the token of the first user."""
    return HfApi(endpoint=ENDPOINT_STAGING, token=TOKEN)


@pytest.fixture(scope="session")
def repo_factory() -> Iterator[RepoFactory]:
    """Creates repositories that are deleted after the last test."""
    made: list[tuple[HfApi, str, str]] = []

    def create(
        repo_type: str = "model", repo_id: str | None = None, token: str = TOKEN, **options: Any
    ) -> RepoUrl:
        client = HfApi(endpoint=ENDPOINT_STAGING, token=token)
        if repo_type == "space":
            options.setdefault("space_sdk", "static")
        url = client.create_repo(repo_id or repo_name(), repo_type=repo_type, **options)
        made.append((client, url.repo_id, repo_type))
        return url

    yield create
    for client, repo_id, repo_type in made:
        with suppress(Exception):  # the test may have deleted or moved it
            client.delete_repo(repo_id, repo_type=repo_type)


@pytest.fixture
def new_repo_id(api: HfApi) -> Iterator[str]:
    """A name of which a repository may be created, which is deleted after the test."""
    repo_id = f"{USER}/{repo_name()}"
    yield repo_id
    api.delete_repo(repo_id, missing_ok=True)


@pytest.fixture(autouse=True)
def xet_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of Xet run with it, tests without it alone where it is off."""
    if request.node.get_closest_marker("xet"):
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    if request.node.get_closest_marker("no_xet") and is_xet_available():
        pytest.skip("Xet is on")


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A cache folder for classes that ask for one by an attribute."""
    if request.cls is not None and not hasattr(request.cls, "cache_dir"):
        request.cls.cache_dir = tmp_path / "cache"


@pytest.fixture(autouse=True)
def expected_warning(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test of something deprecated may warn of it."""
    marker = request.node.get_closest_marker("deprecated")
    if marker is None:
        yield
        return
    with pytest.warns(FutureWarning):
        yield
