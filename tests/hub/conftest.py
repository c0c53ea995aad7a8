"""One real Hub for all tests, a proxy in front of it for each test, and folders to publish."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubmerge.hub import client, client_errors, outbox, publish
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import Publication
from hubmerge.server import ServerState, lease
from tests.faulty_hub import FakeClock, FaultyHub, serve_faulty_hub
from tests.hub.proxy import Proxy, run_proxy

Folder = Callable[..., Path]
FAULTY_REPO = "me/expert"
_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter delays between attempts, for a Hub on the same machine; as many as usual."""
    for module in (client, publish, outbox):
        delays = [delay_s / 200 for delay_s in module._RETRY_DELAYS_S]
        monkeypatch.setattr(module, "_RETRY_DELAYS_S", tuple(delays))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds waited before each retry of a call, instead of waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(client_errors, "sleep", seconds.append)
    return seconds


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    with lease(tmp_path_factory.mktemp("hub")) as state:
        yield state


@pytest.fixture(scope="session")
def api(server: ServerState) -> HfApi:
    """The client library alone, past the proxy and the code of hubmerge."""
    return HfApi(endpoint=server.url, token=server.token)


@pytest.fixture
def proxy(server: ServerState) -> Iterator[Proxy]:
    with run_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def hub(proxy: Proxy, server: ServerState, tmp_path: Path) -> Hub:
    return Hub(proxy.url, lambda: server.token, tmp_path / "cache", "the test Hub")


@pytest.fixture(scope="session")
def served_with_faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    with serve_faulty_hub(tmp_path_factory.mktemp("faulty") / "data") as hub:
        yield hub


@pytest.fixture
def faulty(served_with_faults: FaultyHub) -> FaultyHub:
    """A Hub with an empty repository, without faults, at the start of its time."""
    hub = served_with_faults
    hub.clock = FakeClock()
    hub.plan()
    hub.api.delete_repo(FAULTY_REPO, missing_ok=True)
    hub.api.create_repo(FAULTY_REPO)
    return hub


@pytest.fixture
def repo(api: HfApi) -> str:
    """The id of a new repository."""
    repo_id = f"hub-tests/repo-{next(_numbers)}"
    api.create_repo(repo_id)
    return repo_id


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Make the folder of a step; `seed` determines the weights, `extra` adds files."""

    def make(step: int, seed: int = 0, **extra: str) -> Path:
        return write_step_folder(tmp_path / f"folder-{next(_numbers)}", step, seed, extra)

    return make


def write_step_folder(
    path: Path, step: int, seed: int = 0, extra: dict[str, str] | None = None
) -> Path:
    """Write weights (an LFS file) and a config, a card and a manifest (regular files)."""
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes([step % 251, seed]) * 1024)
    (path / "config.json").write_text('{"model_type": "test"}')
    (path / "README.md").write_text(f"---\nlicense: mit\n---\n# Step {step}\n")
    (path / "hubmerge.json").write_text(json.dumps({"step": step, "seed": seed}))
    for name, text in (extra or {}).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def step_publication(repo: str, folder: Path, step: int, run: str = "r1") -> Publication:
    """The publication of a step folder, as `hubmerge train` makes it."""
    return Publication(
        repo_id=repo,
        folder=folder,
        title=f"Step {step}",
        trailer={"run": run, "step": str(step)},
        tag=f"step{step}",
        tag_message=json.dumps({"step": step}),
    )


def commits_with(api: HfApi, publication: Publication) -> list[str]:
    """The commits on main that have the trailer of a publication."""
    commits = api.list_repo_commits(publication.repo_id)
    return [commit.commit_id for commit in commits if commit.message == publication.description]


def tags(api: HfApi, repo: str) -> dict[str, str]:
    """The tags of a repository and their commits."""
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
