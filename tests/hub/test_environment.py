"""The choice of the Hub: the embedded one, the configured one, or an unknown word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import constants, get_token

from hubmerge.errors import NoAccess, UsageError
from hubmerge.hub.environment import client_environment, connect, connect_inside, hub_folder
from hubmerge.hub.publish import ensure_repo
from hubmerge.hub.step_names import list_refs
from hubmerge.server import ServerState, read_state

SERVER = ServerState("http://127.0.0.1:1", 1, Path("/hub"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `connect` sets is restored after the test."""
    for name in client_environment(SERVER):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)


@pytest.mark.parametrize("choice", ["local", None])
def test_the_embedded_hub_starts_and_may_be_written_to(
    choice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBMERGE_HUB", "local")
    with connect(choice) as hub:
        state = read_state(hub_folder())
        assert state is not None
        assert hub.endpoint == state.url == os.environ["HF_ENDPOINT"]
        assert hub.cache == hub_folder() / "cache"
        ensure_repo(hub, "demo/new")


def test_nothing_that_is_set_keeps_a_command_from_the_embedded_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_another_hub")
    monkeypatch.setenv("HF_OIDC_RESOURCE", "o/merged")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet, localhost")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with connect("local") as hub:
        assert get_token() == hub.token
        assert os.environ["NO_PROXY"] == "intranet,localhost,127.0.0.1"
        assert os.environ["HF_DATASETS_OFFLINE"] == "0"
        ensure_repo(hub, "demo/offline")
        assert "main" in list_refs(hub, "demo/offline").branches


def test_other_clients_are_given_no_token_but_the_file_of_it() -> None:
    variables = client_environment(SERVER)
    assert (variables["HF_TOKEN"], variables["HF_TOKEN_PATH"]) == ("", "/hub/token")
    assert variables["HF_HUB_CACHE"] == "/hub/cache"


def test_inside_another_program_its_hub_token_and_offline_mode_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = dict(os.environ)
    with connect_inside("local") as hub:
        ensure_repo(hub, "demo/inside")
        assert hub.token != "hf_of_the_user"
    assert (dict(os.environ), constants.HF_HUB_OFFLINE) == (before, True)


def test_the_configured_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with connect() as hub:
        assert (hub.endpoint, hub.name) == ("https://hub.example.org", "hub.example.org")
        assert hub.token == "hf_secret"
        assert "hf_secret" not in repr(hub)


def test_a_ci_job_without_an_oidc_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "HF_OIDC_ID_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_OIDC_RESOURCE", "o/merged")
    with connect() as hub, pytest.raises(NoAccess, match="signing in") as refused:
        list_refs(hub, "o/merged")
    assert "id-token: write" in refused.value.hint


def test_the_embedded_hub_is_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HUBMERGE_HOME", str(tmp_path / "elsewhere"))
    assert hub_folder() == tmp_path / "elsewhere" / "hub"


def test_an_unknown_hub_is_refused() -> None:
    with pytest.raises(UsageError, match="'lokal' is not a Hub"), connect("lokal"):
        pass
