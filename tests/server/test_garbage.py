"""What garbage collection keeps and what it deletes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

from hubmerge.errors import HubmergeError
from hubmerge.server.content import AddFile, AddLargeFile, Change
from hubmerge.server.garbage import Garbage, collect_garbage, measure_usage
from hubmerge.server.http_errors import RevisionMissing
from hubmerge.server.names import RepoId
from hubmerge.server.repository import TAG, Repository
from hubmerge.server.store import RepositoryStore
from hubmerge.server.xorbs import Xorbs


class Hub:
    """A store with its xorbs, and contents that count as uploaded long ago."""

    def __init__(self, data: Path) -> None:
        self.store = RepositoryStore(data)
        self.store.clean_up()
        self.xorbs = Xorbs(data / "xorbs", self.store.blobs, self.store.uploads)

    def create(self, name: str) -> Repository:
        return self.store.create(RepoId("models", "me", name), author="me")

    def upload(self, text: str, age_s: float = 7200) -> AddLargeFile:
        oid = oid_of(text)
        with self.store.blobs.receive() as incoming:
            incoming.write(text.encode())
            incoming.store(oid, len(text))
        self.store.blobs.release(oid, age_s)
        return AddLargeFile("w.bin", oid, len(text))

    def has(self, *texts: str) -> list[bool]:
        return [self.store.blobs.has(oid_of(text)) for text in texts]

    def gc(self, dry_run: bool = False) -> Garbage:
        return collect_garbage(self.store, self.xorbs, dry_run)


def oid_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def commit(repository: Repository, *changes: Change, branch: str = "main") -> str:
    return repository.commit(branch, changes, "m", author="me")


@pytest.fixture
def disk(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


def test_what_refs_reach_is_kept(disk: Hub) -> None:
    model = disk.create("m")
    commit(model, disk.upload("old"))
    model.create_ref(TAG, "step1", "main", "with a message", "me")
    commit(model, disk.upload("new"))
    model.open_pull([disk.upload("proposed")], "A change", author="me")
    disk.upload("nobody's")
    found = disk.gc(dry_run=True)
    assert (found.large_files, found.large_bytes, found.git_objects) == (1, 8, 0)
    assert disk.has("old", "new", "proposed", "nobody's") == [True] * 4
    assert disk.gc() == found
    assert disk.has("old", "new", "proposed", "nobody's") == [True, True, True, False]
    assert disk.gc().total_bytes == 0
    assert [f.path for f in model.snapshot("step1").files()] == [".gitattributes", "w.bin"]


def test_history_that_no_ref_reaches_is_deleted(disk: Hub) -> None:
    model = disk.create("m")
    old = commit(model, disk.upload("old"), AddFile("a", b"1"))
    commit(model, disk.upload("new"))
    model.squash("main", "One", "me")
    found = disk.gc()
    assert (found.large_files, found.git_objects) == (1, 6)  # commits and trees; blob of a pointer
    assert disk.has("old", "new") == [False, True]
    with pytest.raises(RevisionMissing):
        model.snapshot(old)
    assert model.snapshot("main").read("a") == b"1"


def test_what_a_published_lock_pins_is_kept(disk: Hub) -> None:
    expert, base, merge = (disk.create(name) for name in ("expert", "base", "merge"))
    base_sha = commit(base, disk.upload("base"))
    pin = json.dumps({"base": {"sha": base_sha}}).encode()
    pinned = commit(expert, disk.upload("pinned"), AddFile("hubmerge.json", pin))
    commit(expert, disk.upload("head"))
    for repository in (expert, base):
        repository.squash("main", "One", "me")
    commit(base, disk.upload("new base"))
    commit(merge, AddFile("sub/hubmerge.lock", f'{{"sha": "{pinned}"}}'.encode()))
    disk.gc()
    assert disk.has("pinned", "head", "base", "new base") == [True] * 4
    assert expert.snapshot(pinned).read("hubmerge.json") == pin
    disk.store.delete(merge.id)
    disk.gc()  # the base is pinned by the pinned commit only
    assert disk.has("pinned", "head", "base", "new base") == [False, True, True, True]


def test_what_was_just_uploaded_is_kept(disk: Hub) -> None:
    disk.create("m")
    disk.upload("young", age_s=0)
    disk.upload("found again")
    assert disk.store.blobs.touch(oid_of("found again"))
    assert not disk.store.blobs.touch(oid_of("never uploaded"))
    disk.store.parts.mkdir()
    (disk.store.parts / "young").write_bytes(b"12345")
    body = b"\0\3\0\0\0\3\0\0abc"
    disk.xorbs.add("me", "ab" * 32, io.BytesIO(body))
    epoch, found = disk.xorbs.epoch, disk.gc()
    assert (found.total_bytes, found.young_bytes) == (0, 16)
    assert disk.xorbs.epoch == epoch
    past = time.time() - 7200
    for path in (*disk.store.parts.iterdir(), *(disk.store.data / "xorbs").glob("*/*/*/*")):
        os.utime(path, (past, past))
    assert disk.gc(dry_run=True).upload_bytes > 8
    assert disk.gc().upload_bytes > 8
    assert disk.xorbs.epoch != epoch
    assert list(disk.store.parts.iterdir()) == []


def test_a_deleted_repository_frees_what_only_it_has(disk: Hub) -> None:
    one, two = disk.create("one"), disk.create("two")
    for repository, names in ((one, ("shared", "own")), (two, ("shared",))):
        for name in names:
            commit(repository, disk.upload(name, age_s=0))
    before = {
        row["repository"]: row for row in measure_usage(disk.store, disk.xorbs)["repositories"]
    }  # type: ignore[attr-defined]
    assert (before["me/one"]["large_bytes"], before["me/one"]["own_bytes"]) == (9, 3)
    assert (before["me/two"]["own_bytes"], before["me/one"]["commits"]) == (0, 3)
    disk.store.delete(one.id)
    after = measure_usage(disk.store, disk.xorbs)
    assert (after["large_bytes"], after["unreachable_bytes"]) == (9, 3)
    assert disk.gc().large_bytes == 3
    assert disk.has("shared", "own") == [True, False]


def test_a_damaged_repository_stops_the_collection(disk: Hub) -> None:
    model = disk.create("m")
    sha = commit(model, AddFile("a", b"1"))
    disk.upload("nobody's")
    (model.folder / "objects" / sha[:2] / sha[2:]).unlink()
    with pytest.raises(HubmergeError, match="lacks the object"):
        disk.gc()
    assert disk.has("nobody's") == [True]


def test_only_who_runs_the_hub_may_collect(
    web: httpx2.Client, api: HfApi, reader: HfApi, repo: str
) -> None:
    api.upload_file(path_or_fileobj=b"w", path_in_repo="w.bin", repo_id=repo)
    headers = {"Authorization": f"Bearer {reader.token}"}
    for method, path in (("GET", "usage"), ("POST", "gc")):
        assert web.request(method, f"/api/hubmerge/{path}", headers=headers).status_code == 403
    found = web.post("/api/hubmerge/gc", json={"dryRun": True}).json()
    assert found["total_bytes"] == found["large_bytes"] + found["git_bytes"] + found["upload_bytes"]
    rows = web.get("/api/hubmerge/usage").json()["repositories"]
    assert {row["repository"]: row["large_bytes"] for row in rows}[repo] == 1
