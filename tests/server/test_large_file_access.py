"""Large files are stored once for all users, but who knows only the sha256 of one cannot use it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from hubmerge.server import ServerState
from hubmerge.server.blobs import BlobStore
from hubmerge.server.content import Pointer
from hubmerge.server.http_errors import BadRequest
from hubmerge.server.shards import Segment, ShardFile
from hubmerge.server.tokens import Tokens
from hubmerge.server.uploads import Uploads, user_key
from hubmerge.server.xorbs import Xorbs
from tests.server.test_git import git, url_of
from tests.server.test_xet import XORB, chunk

SECRET = b"weights that only ada and the operator may read"
POINTER = Pointer(hashlib.sha256(SECRET).hexdigest(), len(SECRET))
OBJECT = {"oid": POINTER.oid, "size": POINTER.size}
UNKNOWN = {"oid": "ab" * 32, "size": 3}


@pytest.fixture(scope="module")
def ada(hub: ServerState) -> HfApi:
    """The owner of a private repository, a gated one, and a public one, each with a large file."""
    ada = HfApi(endpoint=hub.url, token=Tokens(hub.data).create("ada-l", "write"))
    for name, content in (("secret", SECRET), ("gated", b"gated weights"), ("public", b"public")):
        ada.create_repo(name, private=name == "secret")
        ada.upload_file(path_or_fileobj=content, path_in_repo="w.bin", repo_id=f"ada-l/{name}")
    ada.update_repo_settings("ada-l/gated", gated="auto")
    return ada


@pytest.fixture(scope="module")
def eve(hub: ServerState, ada: HfApi) -> HfApi:
    eve = HfApi(endpoint=hub.url, token=Tokens(hub.data).create("eve-l", "write"))
    eve.create_repo("copy")
    return eve


@pytest.fixture
def as_eve(hub: ServerState, eve: HfApi) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {eve.token}"}
    with httpx2.Client(base_url=hub.url, headers=headers, timeout=None) as client:
        yield client


def commit(client: httpx2.Client, key: str, **value: object) -> httpx2.Response:
    """Commit one file to eve's repository."""
    lines = [{"key": "header", "value": {"summary": "m"}}, {"key": key, "value": value}]
    body = "\n".join(map(json.dumps, lines))
    return client.post("/api/models/eve-l/copy/commit/main", content=body)


def commit_large(client: httpx2.Client, **object: object) -> httpx2.Response:
    return commit(client, "lfsFile", path="stolen.bin", algo="sha256", **object)


def upload_action(
    client: httpx2.Client, object: dict[str, object], transfer: str = "basic"
) -> dict[str, str]:
    body = {"operation": "upload", "transfers": [transfer], "objects": [object]}
    answer = client.post("/eve-l/copy.git/info/lfs/objects/batch", json=body)
    return dict(answer.json()["objects"][0].get("actions", {}).get("upload", {}))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("make", [
    lambda known: {"key": "lfsFile", "path": "a.bin", "algo": "sha256", **known},
    lambda known: {"key": "lfsFile", "path": "a.bin", "algo": "sha256", "oid": known["oid"]},
    lambda known: {
        "key": "file", "path": "a.txt", "encoding": "base64",
        "content": base64.b64encode(Pointer(**known).text).decode(),
    },
])  # fmt: skip
def test_a_commit_of_a_known_sha256_is_refused_as_if_it_were_not_here(
    as_eve: httpx2.Client, make: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    answers = [commit(as_eve, **make(known)) for known in (OBJECT, UNKNOWN)]  # type: ignore[arg-type]
    assert [answer.status_code for answer in answers] == [400, 400]
    hidden, absent = (answer.json()["error"] for answer in answers)
    assert hidden == absent.replace(UNKNOWN["oid"], POINTER.oid)
    assert "Upload it first" in hidden


def test_it_must_be_uploaded_and_is_stored_once(
    as_eve: httpx2.Client, ada: HfApi, hub: ServerState
) -> None:
    content = b"what both have"
    file = {"oid": sha256(content), "size": len(content)}
    ada.upload_file(path_or_fileobj=content, path_in_repo="both.bin", repo_id="ada-l/secret")
    verify = "/eve-l/copy.git/info/lfs/objects/verify"
    assert as_eve.post(verify, json=file).status_code == 404
    href = upload_action(as_eve, file)["href"]
    assert httpx2.put(href, content=b"x" * len(content), timeout=None).status_code == 400
    parts = upload_action(as_eve, file, "multipart")["href"]
    assert httpx2.post(parts, json={}).status_code == 400
    assert httpx2.put(href.replace("user=", "user=0"), content=content).status_code == 403
    assert commit_large(as_eve, **file).status_code == 400
    assert httpx2.put(href, content=content, timeout=None).status_code == 200
    assert as_eve.post(verify, json=file).status_code == 200
    assert upload_action(as_eve, file) == {}
    assert commit_large(as_eve, **file).status_code == 200
    assert [path.name for path in (hub.data / "blobs").rglob(str(file["oid"]))] == [file["oid"]]


@pytest.mark.parametrize("xet", [False, True])
def test_the_client_uploads_what_another_user_has(
    ada: HfApi, eve: HfApi, tmp_path: Path, xet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    content = f"the same weights, xet: {xet}".encode() * 1000
    (tmp_path / "w.bin").write_bytes(content)
    for client, repo in ((ada, "ada-l/secret"), (eve, "eve-l/own")):
        client.create_repo(repo, private=True, exist_ok=True)
        add = CommitOperationAdd("w.bin", tmp_path / "w.bin")
        client.create_commit(repo, [add], commit_message="m")
        local = client.hf_hub_download(repo, "w.bin", cache_dir=tmp_path / "cache")
        assert Path(local).read_bytes() == content


def test_what_can_be_read_in_a_repository_may_be_used(
    as_eve: httpx2.Client, web: httpx2.Client
) -> None:
    for content, status in ((b"public", 200), (b"gated weights", 400)):
        file = {"oid": sha256(content), "size": len(content)}
        assert (upload_action(as_eve, file) == {}) == (status == 200)
        assert commit_large(as_eve, **file).status_code == status
        # The user `local` has the data folder.
        assert commit_large(web, **file).status_code == 200
    asked = {"files": [{"path": "w.bin", "size": 9, "sample": ""}]}
    answers = [
        as_eve.post(f"/api/models/ada-l/{name}/preupload/main", json=asked).json()["files"][0]
        for name in ("public", "gated")
    ]
    assert ["oid" in answer for answer in answers] == [True, False]


def test_a_push_of_a_known_sha256_is_refused_and_leaves_nothing(
    eve: HfApi, as_eve: httpx2.Client, hub: ServerState, tmp_path: Path
) -> None:
    content = b"what ada will push"
    eve.create_repo("pushed", exist_ok=True)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("local/pushed", private=True, exist_ok=True)
    api.upload_file(path_or_fileobj=content, path_in_repo="w.bin", repo_id="local/pushed")
    oid = sha256(content)
    git(tmp_path, "clone", "-q", url_of(hub, "eve-l/pushed", str(eve.token)), "clone")
    clone = tmp_path / "clone"
    (clone / "w.bin").write_bytes(Pointer(oid, len(content)).text)
    # Without git-lfs, or with it: the pointer is committed as it is.
    git(clone, "-c", "core.attributesFile=/dev/null", "rm", "-q", ".gitattributes")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "stolen")
    sha = git(clone, "rev-parse", "HEAD").strip()
    for _ in range(2):
        text = git(clone, "push", "origin", "HEAD:main", "HEAD~1:refs/heads/fine", code=1)
        assert f"the large file {oid} was not uploaded" in text
        assert as_eve.get(f"/eve-l/pushed/resolve/{sha}/w.bin").status_code == 404
        body = {"operation": "download", "objects": [{"oid": oid, "size": len(content)}]}
        answer = as_eve.post("/eve-l/pushed.git/info/lfs/objects/batch", json=body).json()
        assert answer["objects"][0]["error"]["code"] == 404
    assert "fine" in [ref.name for ref in eve.list_repo_refs("eve-l/pushed").branches]
    assert list((hub.data / "tmp").iterdir()) == []
    href = upload_action(as_eve, {"oid": oid, "size": len(content)})["href"]
    assert httpx2.put(href, content=content, timeout=None).status_code == 200
    git(clone, "push", "-q", "origin", "HEAD:main")
    assert as_eve.get(f"/eve-l/pushed/resolve/{sha}/w.bin").content == content


def test_a_xet_upload_counts_only_with_its_chunks(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    blobs = BlobStore(tmp_path / "blobs", tmp_path / "tmp")
    uploads = Uploads(tmp_path / "uploads", blobs)
    xorbs = Xorbs(tmp_path / "xorbs", blobs, uploads)
    ada, eve = user_key("ada"), user_key("eve")
    xorbs.add(ada, XORB, io.BytesIO(chunk(SECRET)))
    file = ShardFile(POINTER.oid, (Segment(XORB, 0, 1, POINTER.size),))
    xorbs.assemble(ada, iter([file]))
    assert uploads.has(ada, POINTER.oid)
    for stolen in (file, ShardFile(POINTER.oid, ())):
        with pytest.raises(BadRequest):
            xorbs.assemble(eve, iter([stolen]))
    assert not uploads.has(eve, POINTER.oid)
    xorbs.add(eve, XORB, io.BytesIO(chunk(SECRET)))
    xorbs.assemble(eve, iter([file]))
    assert uploads.has(eve, POINTER.oid)


def test_an_upload_is_forgotten_and_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").write_bytes(SECRET)
    blobs = BlobStore(tmp_path / "blobs", tmp_path / "tmp")
    uploads, ada = Uploads(tmp_path / "uploads", blobs), user_key("Ada")
    uploads.record(ada, POINTER.oid)
    assert not uploads.has(ada, POINTER.oid)  # nobody has it
    blobs.add(tmp_path / "file", POINTER.oid, POINTER.size)
    assert uploads.has(user_key("ada"), POINTER.oid)
    uploads.remove_old(age_s=60)
    assert uploads.has(ada, POINTER.oid)
    for path in (tmp_path / "uploads").rglob(POINTER.oid):
        os.utime(path, (0, 0))
    uploads.remove_old(age_s=60)
    assert not uploads.has(ada, POINTER.oid)
    assert uploads.has(user_key("local"), POINTER.oid)
