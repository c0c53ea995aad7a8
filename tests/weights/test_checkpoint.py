"""Opening checkpoints: supported layouts, and links that must not be followed."""

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


def write_weights(folder: Path, name: str, tensors: dict[str, np.ndarray] = ONE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return folder


def write_shards(
    folder: Path, weight_map: object, index: str = "model.safetensors.index.json"
) -> Path:
    write_weights(folder, "model-1.safetensors", {"a": ONE["a"]})
    write_weights(folder, "model-2.safetensors", {"n": ONE["n"]})
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
def test_single_file(name: str, kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_weights(tmp_path, name))
    assert checkpoint.kind == kind
    assert checkpoint.weight_file_names() == (name,)
    assert set(checkpoint.names()) == {"a", "n"}
    np.testing.assert_array_equal(checkpoint.read("a"), ONE["a"])
    assert checkpoint.read("n").dtype == np.int64


def test_shards_read_as_one(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_shards(tmp_path, SHARDS))
    assert list(checkpoint.weight_file_names()) == sorted(SHARDS.values())
    np.testing.assert_array_equal(checkpoint.read("a"), ONE["a"])


def test_known_names_are_preferred(tmp_path: Path) -> None:
    write_weights(tmp_path, "consolidated.safetensors")
    write_weights(tmp_path, "adapter_model.safetensors")
    write_shards(tmp_path, SHARDS)
    assert len(open_checkpoint(tmp_path).weight_file_names()) == 2
    write_weights(tmp_path, "model.safetensors")
    assert open_checkpoint(tmp_path).weight_file_names() == ("model.safetensors",)
    write_weights(tmp_path, "open_clip_model.safetensors")
    assert open_checkpoint(tmp_path).weight_file_names() == ("open_clip_model.safetensors",)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16])
def test_narrow_floats_keep_their_dtype(dtype: type, tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0], [0.25, 3.0]]).astype(dtype)
    read = open_checkpoint(write_weights(tmp_path, "model.safetensors", {"x": values})).read("x")
    assert read.dtype == values.dtype
    assert read.tobytes() == values.tobytes()


def test_read_returns_a_new_array(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_weights(tmp_path, "model.safetensors"))
    checkpoint.read("a")[:] = 9
    np.testing.assert_array_equal(checkpoint.read("a"), ONE["a"])


def test_digest_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    first = open_checkpoint(write_shards(tmp_path / "one", SHARDS))
    second = open_checkpoint(write_shards(tmp_path / "else" / "where", SHARDS))
    lines = [
        f"{hashlib.sha256((first.folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in first.weight_file_names()
    ]
    assert first.digest() == second.digest() == hashlib.sha256("".join(lines).encode()).hexdigest()
    write_weights(tmp_path / "one", "model-2.safetensors", {"n": np.array([8], np.int64)})
    assert first.digest() != second.digest()


def test_digest_of_a_missing_file_gives_a_sentence(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_weights(tmp_path, "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: No such file"):
        checkpoint.digest()


def test_unknown_tensor_and_truncated_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_weights(tmp_path, "model.safetensors"))
    with pytest.raises(CheckpointError, match="no tensor 'b'"):
        checkpoint.read("b")
    os.truncate(tmp_path / "model.safetensors", checkpoint.index["a"].start + 1)
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor 'a'.*ends before it"):
        checkpoint.read("a")


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="gone cannot be read"):
        open_checkpoint(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is a file"):
        open_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_pytorch_model.pt", "x.pth"])
def test_pickles_are_rejected_with_a_hint(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04canary")
    with pytest.raises(CheckpointError, match="only as pickles") as caught:
        open_checkpoint(tmp_path)
    assert f"hubmerge import {tmp_path} --out DIR" in caught.value.hint


def test_several_files_without_an_index(tmp_path: Path) -> None:
    write_weights(tmp_path, "one.safetensors")
    write_weights(tmp_path, "two.safetensors")
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
def test_index_must_name_files_of_the_folder(name: object, tmp_path: Path) -> None:
    write_weights(tmp_path, "out.safetensors")
    write_shards(tmp_path / "in", SHARDS | {"a": name})
    with pytest.raises(CheckpointError, match="not a safetensors file of this folder"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "no weight_map"),
        ([], "no weight_map"),
        (SHARDS | {"b": "model-1.safetensors"}, "lacks tensor 'b'"),
        ({"a": "model-1.safetensors", "n": "model-1.safetensors"}, "lacks tensor 'n'"),
        (SHARDS | {"b": "model-3.safetensors"}, "model-3.safetensors cannot be read"),
    ],
)
def test_index_and_shards_must_agree(weight_map: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_shards(tmp_path, weight_map))


def test_tensor_missing_in_the_index_is_an_error(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    write_weights(tmp_path, "model-2.safetensors", {"n": ONE["n"], "more": ONE["a"]})
    with pytest.raises(CheckpointError, match="has tensor 'more'"):
        open_checkpoint(tmp_path)


def test_index_with_a_duplicate_key(tmp_path: Path) -> None:
    write_shards(tmp_path, SHARDS)
    text = '{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="'a' appears twice"):
        open_checkpoint(tmp_path)


def write_hub_cache(tmp_path: Path, target: str, blob: str = "c" * 64) -> Path:
    """Write a Hugging Face cache of one file, where model.safetensors links to `target`."""
    repo = tmp_path / "models--o--n"
    write_weights(repo / "blobs", "file.safetensors").joinpath("file.safetensors").rename(
        repo / "blobs" / blob
    )
    folder = repo / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(target)
    return folder


def test_links_of_the_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    folder = write_hub_cache(tmp_path, f"../../blobs/{'c' * 64}")
    np.testing.assert_array_equal(open_checkpoint(folder).read("a"), ONE["a"])


@pytest.mark.parametrize(
    "target",
    ["../../../secret", "/etc/passwd", "../../blobs/../../secret", "../../blobs/name", "other"],
)
def test_other_links_are_not_followed(target: str, tmp_path: Path) -> None:
    write_weights(tmp_path, "x.safetensors").joinpath("x.safetensors").rename(tmp_path / "secret")
    folder = write_hub_cache(tmp_path, target)
    with pytest.raises(CheckpointError, match="symbolic link that leaves its folder"):
        open_checkpoint(folder)


def test_link_in_blobs_is_not_followed(tmp_path: Path) -> None:
    write_weights(tmp_path, "secret.safetensors")
    folder = write_hub_cache(tmp_path, f"../../blobs/{'d' * 64}")
    (folder.parents[1] / "blobs" / ("d" * 64)).symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(folder)


def test_link_outside_a_cache_is_not_followed(tmp_path: Path) -> None:
    write_weights(tmp_path / "there", "x.safetensors")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.safetensors").symlink_to("../there/x.safetensors")
    with pytest.raises(CheckpointError, match="symbolic link"):
        open_checkpoint(tmp_path / "here")


def test_pipe_is_rejected_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path)
