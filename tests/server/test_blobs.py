"""The blob store: a file that exists is complete and correct."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest

from hubmerge.server.blobs import BlobStore
from hubmerge.server.content import Pointer, parse_pointer
from hubmerge.server.http_errors import BadRequest

CONTENT = b"weights" * 1000
OID = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    (tmp_path / "tmp").mkdir()
    return BlobStore(tmp_path / "blobs", tmp_path / "tmp")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(CONTENT)
    return file


def test_a_content_is_stored_under_its_sha256(blobs: BlobStore, source: Path) -> None:
    blobs.add(source, OID, len(CONTENT))
    assert blobs.has(OID)
    assert blobs.size(OID) == len(CONTENT)
    assert (blobs.folder / OID[:2] / OID[2:4] / OID).read_bytes() == CONTENT


@pytest.mark.parametrize(("oid", "size"), [("0" * 64, len(CONTENT)), (OID, len(CONTENT) - 1)])
def test_a_content_with_another_sha256_or_size_is_refused(
    blobs: BlobStore, source: Path, oid: str, size: int
) -> None:
    with pytest.raises(BadRequest, match="expected"):
        blobs.add(source, oid, size)
    assert not blobs.has(oid)
    assert list(blobs.spool.iterdir()) == []


def test_an_interrupted_upload_leaves_nothing(blobs: BlobStore) -> None:
    with contextlib.suppress(ConnectionError), blobs.receive() as incoming:
        incoming.write(CONTENT)
        raise ConnectionError
    assert list(blobs.spool.iterdir()) == []
    assert not blobs.has(OID)


@pytest.mark.parametrize("oid", ["../../x", "", OID.upper(), OID + "0", "../" * 22])
def test_only_a_sha256_names_a_content(blobs: BlobStore, oid: str) -> None:
    with pytest.raises(BadRequest, match="not a sha256"):
        blobs.path(oid)


def test_a_pointer_is_parsed() -> None:
    pointer = Pointer(OID, 7000)
    assert pointer.text == (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 7000\n" % OID.encode()
    )
    assert parse_pointer(pointer.text) == pointer
    assert parse_pointer(b"x" + pointer.text) is None
