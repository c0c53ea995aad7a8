"""One file at many revisions: asked for at once, verified, and known the next time."""

from __future__ import annotations

import dataclasses
import json

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hubmerge.errors import NotOnHub
from hubmerge.flows.steps import describe_steps
from hubmerge.hub.client import Hub
from hubmerge.hub.history import cache_folder
from hubmerge.hub.publish import publish
from hubmerge.hub.revision_files import read_at_revisions
from hubmerge.progress import no_progress
from hubmerge.refs import ModelRef, Revision
from tests.hub.conftest import Folder, step_publication
from tests.hub.proxy import Proxy, replace_body

NAME = "config.json"


@pytest.fixture
def revisions(api: HfApi, repo: str) -> list[Revision]:
    """Six commits, tagged step0 to step5; the file is missing in the last one."""
    shas = []
    for number in range(6):
        change = (
            CommitOperationAdd(NAME, b'{"n": %d, "e": "\xc3\xa9"}' % number)
            if number < 5
            else CommitOperationDelete(NAME)
        )
        shas.append(str(api.create_commit(repo, [change], commit_message=f"m{number}").oid))
        api.create_tag(repo, tag=f"step{number}", revision=shas[-1])
    return [Revision(ModelRef(repo), sha) for sha in shas]


def numbers(contents: list[bytes | None]) -> list[int | None]:
    return [None if content is None else json.loads(content)["n"] for content in contents]


@pytest.mark.parametrize(("is_embedded", "requests"), [(True, 1), (False, 6)])
def test_each_revision_is_read_once(
    hub: Hub, proxy: Proxy, revisions: list[Revision], is_embedded: bool, requests: int
) -> None:
    hub = dataclasses.replace(hub, is_embedded=is_embedded)
    expected = [0, 1, 2, 3, 4, None]
    assert numbers(read_at_revisions(hub, revisions, NAME, no_progress)) == expected
    assert len(proxy.requests) == requests
    backwards = read_at_revisions(hub, revisions[::-1], NAME, no_progress)
    assert numbers(backwards) == expected[::-1]
    assert len(proxy.requests) == requests


def test_other_bytes_than_the_commit_has_are_not_believed(
    hub: Hub, proxy: Proxy, revisions: list[Revision]
) -> None:
    forged = b'{"n": 7}'
    proxy.fail(f"GET /.*{revisions[0].sha}/config.json", replace_body(forged))
    assert numbers(read_at_revisions(hub, revisions[:1], NAME, no_progress)) == [0]
    embedded = dataclasses.replace(hub, is_embedded=True)
    answer = {"files": [{"oid": "0" * 40, "content": "eyJuIjogN30="}]}
    proxy.fail("POST /api/hubmerge/files", replace_body(json.dumps(answer).encode()))
    assert numbers(read_at_revisions(embedded, revisions[1:2], NAME, no_progress)) == [1]
    cache = cache_folder(hub, str(revisions[0].ref.repo_id)) / f"{NAME}.jsonl"
    cache.write_text(cache.read_text().replace('\\"n\\": 1', '\\"n\\": 9') + '["cut')
    assert numbers(read_at_revisions(hub, revisions[:2], NAME, no_progress)) == [0, 1]


def test_a_large_file_is_read_by_itself(hub: Hub, proxy: Proxy, api: HfApi, repo: str) -> None:
    text = json.dumps({"n": 1, "pad": "x" * (70 << 10)}).encode()
    sha = api.upload_file(path_or_fileobj=text, path_in_repo=NAME, repo_id=repo).oid
    embedded = dataclasses.replace(hub, is_embedded=True)
    revision = Revision(ModelRef(repo), str(sha))
    assert numbers(read_at_revisions(embedded, [revision], NAME, no_progress)) == [1]
    missing = dataclasses.replace(revision, sha="0" * 40)
    with pytest.raises(NotOnHub):
        read_at_revisions(embedded, [missing], NAME, no_progress)


def test_the_steps_of_a_repository_take_few_requests(
    hub: Hub, proxy: Proxy, revisions: list[Revision], repo: str
) -> None:
    hub = dataclasses.replace(hub, is_embedded=True)
    first = describe_steps(hub, [repo], no_progress)
    assert [step.revision for step in first] == [f"step{number}" for number in range(6)]
    assert proxy.count("") <= 6  # refs, commits, the newest folder, manifests
    proxy.requests.clear()
    assert describe_steps(hub, [repo], no_progress) == first
    assert proxy.count("manifest|hubmerge|paths-info|resolve") == 0


def test_publishing_a_step_reads_no_list_of_refs(
    hub: Hub, proxy: Proxy, repo: str, folder: Folder
) -> None:
    for step in (1, 2):
        publish(hub, step_publication(repo, folder(step), step))
    assert proxy.count("/refs$") == 0
