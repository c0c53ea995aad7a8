"""Uploads by the Xet protocol: the real client, and xorbs and shards that no client would send."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx2
import pyarrow as pa
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from hubmerge.server import ServerState
from hubmerge.server.blobs import BlobStore
from hubmerge.server.http_errors import BadRequest, DiskFull
from hubmerge.server.shards import Segment, ShardFile, parse_shard
from hubmerge.server.uploads import Uploads
from hubmerge.server.xorbs import Xorbs
from tests.server.conftest import send_signal_and_wait

XORB = "ab" * 32
MIB = 1 << 20


@pytest.fixture
def with_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    (tmp_path / "tmp").mkdir()
    return BlobStore(tmp_path / "blobs", tmp_path / "tmp")


@pytest.fixture
def xorbs(tmp_path: Path, store: BlobStore) -> Xorbs:
    return Xorbs(tmp_path / "xorbs", store, Uploads(tmp_path / "uploads", store))


def chunk(data: bytes, scheme: int = 0, size: int | None = None) -> bytes:
    """A chunk of a xorb; `data` as it is stored."""
    size = len(data) if size is None else size
    return (
        bytes([0])
        + len(data).to_bytes(3, "little")
        + bytes([scheme])
        + size.to_bytes(3, "little")
        + data
    )


def lz4(data: bytes) -> bytes:
    return bytes(pa.Codec("lz4").compress(data))


def hash_bytes(text: str) -> bytes:
    return struct.pack("<4Q", *(int(text[i : i + 16], 16) for i in range(0, 64, 16)))


def shard(content: bytes, segments: Iterable[tuple[str, int, int, int]], flags: int = 1) -> bytes:
    """A shard of one file; segments are xorb, first chunk, end, bytes."""
    segments = list(segments)
    has = (flags & 1) << 30 | (flags & 2) << 30
    head = b"HFRepoMetaData\0".ljust(48, b"\0") + bytes(32)
    records = [
        hash_bytes(xorb) + struct.pack("<IIII", 0, size, first, end)
        for xorb, first, end, size in segments
    ]
    records += [bytes(48)] * (len(segments) if flags & 2 else 0)
    records += [hash_bytes(hashlib.sha256(content).hexdigest()) + bytes(16)] if flags & 1 else []
    header = struct.pack("<IIQ", has, len(segments), 0)
    return head + header + b"".join(records) + b"\xff" * 32 + bytes(16)


def test_the_client_uploads_and_downloads_the_same_bytes(
    with_xet: None, api: HfApi, hub: ServerState, tmp_path: Path
) -> None:
    generator = random.Random(0)
    contents = {
        "a.safetensors": generator.randbytes(2 * MIB),
        "b.bin": struct.pack("<f", 1.5) * 300_000,  # four equal bytes apart: grouped and packed
        "c.bin": b"",
    }
    contents["sub/d.bin"] = contents["a.safetensors"][MIB:] + b"end"
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for kind in ("model", "dataset"):
        api.create_repo("tests/xet", repo_type=kind)
    api.upload_folder(repo_id="tests/xet", folder_path=tmp_path)
    add = CommitOperationAdd("data.bin", tmp_path / "a.safetensors")
    api.create_commit("tests/xet", [add], commit_message="m", repo_type="dataset")
    local = Path(api.snapshot_download("tests/xet", cache_dir=tmp_path / "cache"))
    assert {name: (local / name).read_bytes() for name in contents} == contents
    data = api.hf_hub_download(
        "tests/xet", "data.bin", repo_type="dataset", cache_dir=tmp_path / "cache"
    )
    assert Path(data).read_bytes() == contents["a.safetensors"]
    assert list((hub.data / "xorbs").glob("*/*/*/*"))
    assert list((hub.data / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_client_that_remembers_another_hub_at_the_address_uploads_all(
    with_xet: None, spawn: Callable[..., ServerState], tmp_path: Path
) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(random.Random(1).randbytes(MIB))
    first = spawn("--no-seed")
    for _ in range(2):
        api = HfApi(endpoint=first.url, token=first.token)
        api.create_repo("me/m")
        api.upload_file(path_or_fileobj=file, path_in_repo="w.bin", repo_id="me/m")
        send_signal_and_wait(first.pid)
        shutil.rmtree(first.data)
        first = spawn("--no-seed", "--port", str(first.port))


def test_segments_of_xorbs_become_a_file(xorbs: Xorbs, store: BlobStore) -> None:
    parts = [b"one", b"two" * 100, b"abcdabcdab"]
    grouped = lz4(b"aaa" + b"bbb" + b"cc" + b"dd")
    body = chunk(parts[0]) + chunk(lz4(parts[1]), 1, 300) + chunk(grouped, 2, 10) + b"XETBLOBrest"
    assert xorbs.add("me", XORB, io.BytesIO(body))
    assert not xorbs.add("me", XORB, io.BytesIO(body))
    content = b"".join([*parts, parts[1], parts[0]])
    listed = [(XORB, 0, 3, 313), (XORB, 1, 2, 300), (XORB, 0, 1, 3)]
    for flags in (1, 3):
        xorbs.assemble("me", parse_shard(io.BytesIO(shard(content, listed, flags))))
    with store.open(hashlib.sha256(content).hexdigest()) as file:
        assert file.read() == content
    with pytest.raises(BadRequest, match="never uploaded"):
        xorbs.assemble("you", parse_shard(io.BytesIO(shard(b"x", listed))))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (chunk(b"abc")[:-1], "cut off"),
        (b"\0\0", "invalid chunk header"),
        (b"\1" + chunk(b"abc")[1:], "invalid chunk header"),
        (chunk(b"", size=0), "0 or of more"),
        (chunk(b"x", size=(1 << 24) - 1), "0 or of more"),
        (chunk(b"x", 1, 5), "not lz4"),
        (chunk(lz4(bytes(MIB)), 1, 100), "not lz4"),  # a bomb: far more than its header says
        (chunk(lz4(b"x")[:-3], 1, 1), "not lz4"),
        (chunk(b"x", 3), "compression scheme 3"),
        (chunk(b"xy", size=1), "another size"),
        (chunk(lz4(bytes(MIB)), 1, MIB) * 81, "unpacks to more"),
    ],
)
def test_a_hostile_xorb_is_refused(
    xorbs: Xorbs, store: BlobStore, body: bytes, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        xorbs.add("me", XORB, io.BytesIO(body))
    assert list(store.spool.iterdir()) == []
    with pytest.raises(BadRequest, match="hash"):
        xorbs.add("me", "../../x", io.BytesIO(chunk(b"x")))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not a shard"),
        (shard(b"abc", [(XORB, 0, 1, 3)])[:100], "cut off"),
        (shard(b"abc", [(XORB, 0, 1, 3)], flags=0), "without its sha256"),
        (shard(b"abc", [(XORB, 0, 2, 3)]), "1 chunks"),
        (shard(b"abc", [(XORB, 1, 1, 0)]), "1 chunks"),
        (shard(b"abc", [(XORB, 0, 1, 4)]), "4 bytes"),
        (shard(b"xyz", [(XORB, 0, 1, 3)]), "sha256"),
        (shard(b"", [(XORB, 0, 1, 1)])[:80] + struct.pack("<IIQ", 0, 1 << 31, 0), "segments"),
    ],
)
def test_a_hostile_shard_is_refused(xorbs: Xorbs, body: bytes, message: str) -> None:
    xorbs.add("me", XORB, io.BytesIO(chunk(b"abc")))
    with pytest.raises(BadRequest, match=message):
        xorbs.assemble("me", parse_shard(io.BytesIO(body)))


def test_a_file_that_does_not_fit_is_refused_before_it_is_written(xorbs: Xorbs) -> None:
    huge = ShardFile("0" * 64, (Segment(XORB, 0, 1, 1 << 60),))
    with pytest.raises(DiskFull, match="does not fit"):
        xorbs.assemble("me", iter([huge]))


def test_an_epoch_ends_when_its_xorbs_are_deleted(xorbs: Xorbs) -> None:
    before = xorbs.epoch
    assert xorbs.epoch == before
    xorbs.add("me", XORB, io.BytesIO(chunk(b"abc")))
    assert 0 < xorbs.age_s() < 60
    assert xorbs.size() >= 3
    xorbs.clear()
    assert (xorbs.age_s(), xorbs.size()) == (0, 0)
    assert xorbs.epoch != before


def test_only_a_token_for_an_address_may_upload_there(
    web: httpx2.Client, repo: str, reader: HfApi
) -> None:
    answer = web.get(f"/api/models/{repo}/xet-write-token/main")
    fields = answer.json()
    assert answer.headers["x-xet-cas-url"] == fields["casUrl"]
    assert answer.headers["x-xet-access-token"] == fields["accessToken"]
    url, token = fields["casUrl"], {"Authorization": f"Bearer {fields['accessToken']}"}
    body = chunk(b"abc")
    assert web.post(f"{url}/v1/xorbs/default/{XORB}", content=body).status_code == 401
    other = url[:-16] + "0" * 16
    refused = web.post(f"{other}/v1/xorbs/default/{XORB}", content=body, headers=token)
    assert refused.status_code == 401
    added = web.post(f"{url}/v1/xorbs/default/{XORB}", content=body, headers=token)
    assert added.json() == {"was_inserted": True}
    assert web.get(f"{url}/v1/chunks/default/{XORB}", headers=token).status_code == 404
    unknown = shard(b"abc", [("cd" * 32, 0, 1, 3)])
    assert web.post(f"{url}/v1/shards", content=unknown, headers=token).status_code == 400
    assert web.post(f"{url}/v2/shards", content=unknown, headers=token).status_code == 404
    as_reader = {"Authorization": f"Bearer {reader.token}"}
    assert web.get(
        f"/api/models/{repo}/xet-write-token/main", headers=as_reader
    ).status_code == 403  # fmt: skip
