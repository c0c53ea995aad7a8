"""The choice of the Hub: the embedded one, the configured one, or an unknown word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hubmerge.errors import NoAccess, UsageError
from hubmerge.hub.environment import connect, connect_inside, hub_folder
from hubmerge.hub.publish import ensure_repo
from hubmerge.hub.step_names import list_refs
from hubmerge.server import read_state

_SET = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variables that `connect` sets are restored after the test."""
    for name in _SET:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)


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


def test_inside_another_program_its_hub_and_token_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    before = dict(os.environ)
    with connect_inside("local") as hub:
        ensure_repo(hub, "demo/inside")
        assert hub.token != "hf_of_the_user"
    assert dict(os.environ) == before


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
