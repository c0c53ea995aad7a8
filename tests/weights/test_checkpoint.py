"""Every layout a folder may have, and every path that must not be followed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import open_checkpoint

ONE = {"a": np.arange(4, dtype=np.float32), "n": np.array([7], np.int64)}


def put(folder: Path, name: str, tensors: dict[str, np.ndarray] = ONE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return folder


def shard(folder: Path, weight_map: object, index: str = "model.safetensors.index.json") -> Path:
    put(folder, "model-1.safetensors", {"a": ONE["a"]})
    put(folder, "model-2.safetensors", {"n": ONE["n"]})
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    return folder


SHARDS = {"a": "model-1.safetensors", "n": "model-2.safetensors"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("open_clip_model.safetensors", "full"),
        ("model.safetensors", "full"),
        ("adapter_model.safetensors", "lora"),
        ("anything.safetensors", "full"),
    ],
)
def test_one_file(name: str, kind: str, tmp_path: Path) -> None:
    found = open_checkpoint(put(tmp_path, name))
    assert found.kind == kind
    assert found.weight_files() == (tmp_path / name,)
    assert set(found.names()) == {"a", "n"}
    np.testing.assert_array_equal(found.read("a"), ONE["a"])
    assert found.read("n").dtype == np.int64


def test_shards_read_as_one(tmp_path: Path) -> None:
    found = open_checkpoint(shard(tmp_path, SHARDS))
    assert [file.name for file in found.weight_files()] == sorted(SHARDS.values())
    np.testing.assert_array_equal(found.read("a"), ONE["a"])


def test_known_names_come_first(tmp_path: Path) -> None:
    put(tmp_path, "consolidated.safetensors")
    put(tmp_path, "adapter_model.safetensors")
    shard(tmp_path, SHARDS)
    assert len(open_checkpoint(tmp_path).weight_files()) == 2
    put(tmp_path, "model.safetensors")
    assert open_checkpoint(tmp_path).weight_files()[0].name == "model.safetensors"
    put(tmp_path, "open_clip_model.safetensors")
    assert open_checkpoint(tmp_path).weight_files()[0].name == "open_clip_model.safetensors"


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16])
def test_narrow_floats_keep_their_dtype(dtype: type, tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]]).astype(dtype)
    found = open_checkpoint(put(tmp_path, "model.safetensors", {"x": values})).read("x")
    assert found.dtype == values.dtype
    assert found.tobytes() == values.tobytes()


def test_what_is_read_is_our_own(tmp_path: Path) -> None:
    found = open_checkpoint(put(tmp_path, "model.safetensors"))
    found.read("a")[:] = 9
    np.testing.assert_array_equal(found.read("a"), ONE["a"])


def test_digest_names_weights_wherever_they_lie(tmp_path: Path) -> None:
    one = open_checkpoint(shard(tmp_path / "one", SHARDS))
    other = open_checkpoint(shard(tmp_path / "else" / "where", SHARDS))
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in one.weight_files()
    ]
    assert one.digest() == other.digest() == hashlib.sha256("".join(lines).encode()).hexdigest()
    put(tmp_path / "one", "model-2.safetensors", {"n": np.array([8], np.int64)})
    assert one.digest() != other.digest()


def test_digest_of_a_file_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    found = open_checkpoint(put(tmp_path, "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: No such file"):
        found.digest()


def test_unknown_tensor_and_vanished_bytes(tmp_path: Path) -> None:
    found = open_checkpoint(put(tmp_path, "model.safetensors"))
    with pytest.raises(CheckpointError, match="no tensor 'b'"):
        found.read("b")
    os.truncate(tmp_path / "model.safetensors", found.index["a"].start + 1)
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor 'a'.*ends before it"):
        found.read("a")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="gone cannot be read"):
        open_checkpoint(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file"):
        open_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_pytorch_model.pt", "x.pth"])
def test_pickles_are_refused_with_a_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04canary")
    with pytest.raises(CheckpointError, match="only as pickles") as caught:
        open_checkpoint(tmp_path)
    assert "safetensors" in caught.value.hint


def test_several_files_and_no_index(tmp_path: Path) -> None:
    put(tmp_path, "one.safetensors")
    put(tmp_path, "two.safetensors")
    with pytest.raises(CheckpointError, match="2 safetensors files and no index"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../out.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x.bin",
        "model.pt",
        3,
        None,
        "x\n.safetensors",
        "C:x.safetensors",
    ],
)
def test_index_must_stay_in_its_folder(name: object, tmp_path: Path) -> None:
    put(tmp_path, "out.safetensors")
    shard(tmp_path / "in", SHARDS | {"a": name})
    with pytest.raises(CheckpointError, match="not a safetensors file of this folder"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({}, "no weight_map"),
        ([], "no weight_map"),
        (SHARDS | {"b": "model-1.safetensors"}, "lacks tensor 'b'"),
        ({"a": "model-1.safetensors", "n": "model-1.safetensors"}, "lacks tensor 'n'"),
        (SHARDS | {"b": "model-3.safetensors"}, "model-3.safetensors cannot be read"),
    ],
)
def test_index_and_shards_must_agree(weight_map: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(shard(tmp_path, weight_map))


def test_tensor_outside_the_index_is_not_lost(tmp_path: Path) -> None:
    shard(tmp_path, SHARDS)
    put(tmp_path, "model-2.safetensors", {"n": ONE["n"], "more": ONE["a"]})
    with pytest.raises(CheckpointError, match="has tensor 'more'"):
        open_checkpoint(tmp_path)


def test_index_with_a_key_twice(tmp_path: Path) -> None:
    shard(tmp_path, SHARDS)
    text = '{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="'a' appears twice"):
        open_checkpoint(tmp_path)


def cached(tmp_path: Path, target: str, blob: str = "c" * 64) -> Path:
    """A Hugging Face cache of one file, with model.safetensors pointing to `target`."""
    repo = tmp_path / "models--o--n"
    put(repo / "blobs", "file.safetensors").joinpath("file.safetensors").rename(
        repo / "blobs" / blob
    )
    folder = repo / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(target)
    return folder


def test_links_of_the_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    folder = cached(tmp_path, f"../../blobs/{'c' * 64}")
    np.testing.assert_array_equal(open_checkpoint(folder).read("a"), ONE["a"])


@pytest.mark.parametrize(
    "target",
    ["../../../secret", "/etc/passwd", "../../blobs/../../secret", "../../blobs/name", "other"],
)
def test_other_links_are_not(target: str, tmp_path: Path) -> None:
    put(tmp_path, "x.safetensors").joinpath("x.safetensors").rename(tmp_path / "secret")
    folder = cached(tmp_path, target)
    with pytest.raises(CheckpointError, match="symbolic link that leaves its folder"):
        open_checkpoint(folder)


def test_link_behind_a_cached_link_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "secret.safetensors")
    folder = cached(tmp_path, f"../../blobs/{'d' * 64}")
    (folder.parents[1] / "blobs" / ("d" * 64)).symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(folder)


def test_link_outside_a_cache_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "there", "x.safetensors")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.safetensors").symlink_to("../there/x.safetensors")
    with pytest.raises(CheckpointError, match="symbolic link"):
        open_checkpoint(tmp_path / "here")


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path)
