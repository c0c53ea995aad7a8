"""The blob store: a name that exists is whole and true."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest

from hubmerge.server.blobs import Blobs
from hubmerge.server.content import Pointer, parse_pointer
from hubmerge.server.http_errors import BadRequest

CONTENT = b"weights" * 1000
OID = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    (tmp_path / "tmp").mkdir()
    return Blobs(tmp_path / "blobs", tmp_path / "tmp")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(CONTENT)
    return file


def test_a_content_lies_under_its_sha256(blobs: Blobs, source: Path) -> None:
    blobs.add(source, OID, len(CONTENT))
    assert blobs.has(OID)
    assert blobs.size(OID) == len(CONTENT)
    assert (blobs.folder / OID[:2] / OID[2:4] / OID).read_bytes() == CONTENT


@pytest.mark.parametrize(("oid", "size"), [("0" * 64, len(CONTENT)), (OID, len(CONTENT) - 1)])
def test_a_content_under_a_false_name_is_refused(
    blobs: Blobs, source: Path, oid: str, size: int
) -> None:
    with pytest.raises(BadRequest, match="expected"):
        blobs.add(source, oid, size)
    assert not blobs.has(oid)
    assert list(blobs.spool.iterdir()) == []


def test_what_is_not_kept_leaves_nothing(blobs: Blobs) -> None:
    with contextlib.suppress(ConnectionError), blobs.receive() as incoming:
        incoming.write(CONTENT)
        raise ConnectionError
    assert list(blobs.spool.iterdir()) == []
    assert not blobs.has(OID)


@pytest.mark.parametrize("oid", ["../../x", "", OID.upper(), OID + "0", "../" * 22])
def test_only_a_sha256_is_a_name(blobs: Blobs, oid: str) -> None:
    with pytest.raises(BadRequest, match="not a sha256"):
        blobs.path(oid)


def test_a_pointer_reads_back() -> None:
    pointer = Pointer(OID, 7000)
    assert pointer.text == (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 7000\n" % OID.encode()
    )
    assert parse_pointer(pointer.text) == pointer
    assert parse_pointer(b"x" + pointer.text) is None
