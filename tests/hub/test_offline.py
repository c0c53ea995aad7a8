"""HF_HUB_OFFLINE: commits that were downloaded before are used, and nothing is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from hubmerge.errors import HubOffline
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch, list_files, read_file
from hubmerge.hub.outbox import Outbox, Publisher
from hubmerge.hub.publish import publish
from hubmerge.hub.resolve import pin_dataset, resolve
from hubmerge.hub.step_names import list_refs
from hubmerge.refs import Revision, parse_ref
from tests.hub.conftest import Folder, step_publication, write_step_folder
from tests.hub.proxy import Proxy

SHA = "1" * 40


@pytest.fixture
def sha(hub: Hub, repo: str, folder: Folder) -> str:
    """A published commit."""
    publish(hub, step_publication(repo, folder(4, **{"checkpoint-2/config.json": "{}"}), 4))
    return list_refs(hub, repo).tags["step4"]


@pytest.fixture
def offline(sha: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return monkeypatch


def test_a_downloaded_commit_needs_no_hub(
    hub: Hub, repo: str, sha: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [parse_ref(f"{repo}@{sha}"), parse_ref(f"hf://{repo}@{sha}/checkpoint-2")]
    revisions = [resolve(hub, ref) for ref in refs]
    online = [(list_files(hub, item), fetch(hub, item)) for item in revisions]
    manifest = read_file(hub, revisions[0], "hubmerge.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    proxy.requests.clear()
    assert [resolve(hub, ref) for ref in refs] == revisions
    assert [(list_files(hub, item), fetch(hub, item)) for item in revisions] == online
    assert read_file(hub, revisions[0], "hubmerge.json") == manifest
    assert read_file(hub, revisions[0], "absent.json") is None
    assert pin_dataset(hub, "o/data", SHA) == SHA
    assert not proxy.requests


@pytest.mark.usefixtures("offline")
def test_what_is_missing_is_one_sentence_and_is_not_tried_again(
    hub: Hub, repo: str, sha: str, proxy: Proxy, waits: list[float]
) -> None:
    proxy.requests.clear()
    revision = Revision(parse_ref(repo), sha)
    with pytest.raises(HubOffline, match=rf"{repo}@{sha[:12]} is not in the cache /") as missing:
        fetch(hub, revision)
    assert "without HF_HUB_OFFLINE" in missing.value.hint
    with pytest.raises(HubOffline, match="was not asked, reading the tags of") as unresolved:
        resolve(hub, parse_ref(f"{repo}@step4"))
    assert "owner/name@SHA" in unresolved.value.hint
    assert (missing.value.exit_code, waits, proxy.requests) == (75, [], [])


def test_a_file_that_was_not_downloaded_is_named(
    hub: Hub, repo: str, sha: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = resolve(hub, parse_ref(f"hf://{repo}@{sha}/checkpoint-2"))
    fetch(hub, inner)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubOffline, match=r"reading config\.json of"):
        read_file(hub, Revision(parse_ref(repo), sha), "config.json")


@pytest.mark.usefixtures("offline")
def test_the_embedded_hub_is_no_network(hub: Hub, repo: str, sha: str) -> None:
    embedded = replace(hub, is_embedded=True)
    assert resolve(embedded, parse_ref(f"{repo}@step4")).sha == sha
    assert (fetch(embedded, Revision(parse_ref(repo), sha)) / "config.json").is_file()


@pytest.mark.usefixtures("offline")
def test_steps_wait_on_disk_and_the_hub_is_not_tried_again(
    hub: Hub, repo: str, proxy: Proxy, waits: list[float], tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path / "run")
    write_step_folder(outbox.step_folder(8), 8)
    proxy.requests.clear()
    publisher = Publisher(
        hub, outbox, lambda step: step_publication(repo, outbox.step_folder(step), step)
    )
    with pytest.raises(HubOffline, match=r"1 of 1 steps wait in .*: HF_HUB_OFFLINE is set"):
        publisher.close(patience_s=3600)
    assert (outbox.saved_steps(), waits, proxy.requests) == ((8,), [], [])
