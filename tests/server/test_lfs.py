"""Uploading large files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest

from hubmerge.server import ServerState
from hubmerge.server.blobs import BlobStore
from hubmerge.server.tokens import Signer

CONTENT = b"large" * 1000


@pytest.fixture
def oid(request: pytest.FixtureRequest) -> str:
    """The sha256 of this test's own content."""
    return hashlib.sha256(content(request.node.name)).hexdigest()


def content(name: str) -> bytes:
    return CONTENT + name.encode()


def request_upload(web: httpx2.Client, repo: str, oid: str, size: int) -> dict[str, str]:
    body = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": size}]}
    answer = web.post(f"/{repo}.git/info/lfs/objects/batch", json=body)
    assert answer.status_code == 200
    assert answer.json()["transfer"] == "basic"
    # Or git-lfs would send no token where it verifies.
    assert "authenticated" not in answer.json()["objects"][0]
    actions = answer.json()["objects"][0].get("actions", {})
    return {name: action["href"] for name, action in actions.items()}


def test_a_content_is_sent_without_a_token_and_verified_with_one(
    web: httpx2.Client, repo: str, oid: str, request: pytest.FixtureRequest
) -> None:
    body = content(request.node.name)
    hrefs = request_upload(web, repo, oid, len(body))
    announced = {"oid": oid, "size": len(body)}
    assert web.post(hrefs["verify"], json=announced).status_code == 404
    assert httpx2.put(hrefs["upload"], content=body, timeout=None).status_code == 200
    assert web.post(hrefs["verify"], json=announced).status_code == 200
    assert web.post(hrefs["verify"], json={**announced, "size": 1}).status_code == 404
    assert request_upload(web, repo, oid, len(body)) == {}


@pytest.mark.parametrize("body", [b"", b"other", CONTENT + b"far more than was announced" * 99])
def test_a_content_that_differs_from_the_announced_one_is_dropped(
    hub: ServerState, web: httpx2.Client, repo: str, oid: str, body: bytes
) -> None:
    href = request_upload(web, repo, oid, 5005)["upload"]
    assert httpx2.put(href, content=body, timeout=None).status_code in (400, 413)
    assert not BlobStore(hub.data / "blobs", hub.data / "tmp").has(oid)
    assert list((hub.data / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "changed", [{"size": "9"}, {"expires": "1"}, {"sig": "0" * 64}, {"sig": ""}, {"sig": "é"}]
)
def test_a_changed_upload_url_is_refused(
    web: httpx2.Client, repo: str, oid: str, changed: dict[str, str]
) -> None:
    href = urlsplit(request_upload(web, repo, oid, 5)["upload"])
    query = urlencode({**dict(parse_qsl(href.query)), **changed})
    assert web.put(href._replace(query=query).geturl(), content=b"x").status_code == 403
    other = href._replace(path="/lfs/" + "0" * 64)
    assert web.put(other.geturl(), content=b"x").status_code == 403
    assert web.put(f"/lfs/{oid}", content=b"x").status_code == 403


def test_an_upload_url_expires(tmp_path: Path) -> None:
    fresh, stale = Signer(tmp_path).sign("a", 5), Signer(tmp_path, lifetime_s=-1).sign("a", 5)
    assert Signer(tmp_path).verify("a", **fresh)
    assert not Signer(tmp_path).verify("a", **stale)


@pytest.mark.parametrize(
    "objects", [[{"oid": "../x", "size": 1}], [{"oid": "0" * 64}], ["x"], None]
)
def test_an_invalid_batch_is_refused(web: httpx2.Client, repo: str, objects: object) -> None:
    body = {"operation": "upload", "objects": objects}
    answer = web.post(f"/{repo}.git/info/lfs/objects/batch", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "size", "mode"),
    [
        ("w.safetensors", 10, "lfs"),
        ("a/b/w.bin", 10, "lfs"),
        ("data/train.parquet", 10, "lfs"),
        ("saved_model/x/variables.index", 10, "lfs"),
        ("events.out.tfevents.1", 10, "lfs"),
        ("config.json", 10, "regular"),
        ("bin", 10, "regular"),
        ("long.txt", (10 << 20) + 1, "lfs"),
        ("short.txt", 10 << 20, "regular"),
    ],
)
def test_preupload_says_which_files_go_by_lfs(
    web: httpx2.Client, repo: str, path: str, size: int, mode: str
) -> None:
    body = {"files": [{"path": path, "size": size, "sample": ""}]}
    (answer,) = web.post(f"/api/models/{repo}/preupload/main", json=body).json()["files"]
    assert answer == {"path": path, "uploadMode": mode, "shouldIgnore": False}


def test_a_file_is_uploaded_in_parts_and_completed_once(
    hub: ServerState, web: httpx2.Client, repo: str
) -> None:
    body = b"part" * (5 << 20) + b"end"  # two parts of up to 16 MiB
    oid, size = hashlib.sha256(body).hexdigest(), len(body)
    offer = {
        "operation": "upload",
        "transfers": ["multipart"],
        "objects": [{"oid": oid, "size": size}],
    }
    answer = web.post(f"/{repo}.git/info/lfs/objects/batch", json=offer).json()
    upload = answer["objects"][0]["actions"]["upload"]
    header, length = upload["header"], int(upload["header"]["chunk_size"])
    assert (answer["transfer"], list(header)) == ("multipart", ["chunk_size", "00001", "00002"])
    early = httpx2.post(upload["href"], json={"oid": oid, "parts": []}, timeout=None)
    assert early.status_code == 400
    for number in (2, 1, 1):  # in any order, and again
        part = body[(number - 1) * length : number * length]
        sent = httpx2.put(header[f"{number:05}"], content=part, timeout=None)
        assert sent.headers["etag"] == f'"{hashlib.sha256(part).hexdigest()}"'
    assert httpx2.put(header["00002"], content=b"short", timeout=None).status_code == 400
    assert httpx2.put(header["00002"], content=body, timeout=None).status_code == 413
    assert web.put(header["00001"].replace("size=", "size=1"), content=b"").status_code == 403
    httpx2.put(header["00002"], content=body[length:], timeout=None)
    for _ in range(2):
        assert httpx2.post(upload["href"], json={"oid": oid, "parts": []}).status_code == 200
    assert BlobStore(hub.data / "blobs", hub.data / "tmp").size(oid) == size
    assert list((hub.data / "parts").iterdir()) == []


def test_parts_with_another_sha256_are_dropped(
    hub: ServerState, web: httpx2.Client, repo: str, oid: str
) -> None:
    offer = {
        "operation": "upload",
        "transfers": ["multipart"],
        "objects": [{"oid": oid, "size": 5}],
    }
    answer = web.post(f"/{repo}.git/info/lfs/objects/batch", json=offer).json()
    upload = answer["objects"][0]["actions"]["upload"]
    assert httpx2.put(upload["header"]["00001"], content=b"wrong").status_code == 200
    refused = httpx2.post(upload["href"], json={})
    assert (refused.status_code, "sha256" in refused.json()["error"]) == (400, True)
    assert list((hub.data / "parts").iterdir()) == []
