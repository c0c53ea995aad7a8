"""Malformed headers: each gives a sentence that names the file, before memory is allocated."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from hubmerge.errors import CheckpointError
from hubmerge.weights.header import MAX_HEADER_BYTES, read_header

GOOD = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.int64)})


def pack(header: object, data: int = 8) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def entry(
    dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def duplicate_key(name: str) -> bytes:
    one = json.dumps(entry())
    return f'{{"{name}":{one},"{name}":{one}}}'.encode()


MALFORMED = {
    "empty": b"",
    "less than a length": b"\x01\x02\x03",
    "cut in the header": GOOD[:20],
    "cut in the middle of the data": GOOD[:-20],
    "last byte cut": GOOD[:-1],
    "a byte too many": GOOD + b"\0",
    "header over the cap": struct.pack("<Q", 100_000_001) + b"{" + b" " * 100,
    "header of 2^64": struct.pack("<Q", 2**64 - 1) + b"{}",
    "blank before the header": pack(b' {"a":' + json.dumps(entry()).encode() + b"}"),
    "not JSON": pack(b"{nonsense}"),
    "not UTF-8": pack(b'{"\xff":1}'),
    "not an object": pack([1]),
    "NaN is not JSON": pack(b'{"a":NaN}'),
    "nested too deeply": pack(b'{"a":' * 200_000),
    "number of too many digits": pack(b'{"a":' + b"9" * 9999 + b"}"),
    "key twice": pack(duplicate_key("a")),
    "metadata twice": pack(b'{"__metadata__":{},"__metadata__":{}}', 0),
    "metadata not text": pack({"__metadata__": {"a": 1}, "x": entry()}),
    "entry not an object": pack({"a": 1}),
    "entry with another key": pack({"a": entry() | {"x": 1}}),
    "entry lacks a key": pack({"a": {"dtype": "F32", "shape": [2]}}),
    "unknown dtype": pack({"a": entry("F4")}),
    "dtype not text": pack({"a": entry(["F32"])}),
    "huge shape": pack({"a": entry(shape=[2**62, 2**62])}),
    "shape over 64 bits": pack({"a": entry(shape=[2**64])}),
    "shape wraps to right size": pack({"a": entry(shape=[2**32, 2**32, 2])}),
    "negative shape": pack({"a": entry(shape=[-1, -2])}),
    "fractional shape": pack({"a": entry(shape=[2.0])}),
    "shape of booleans": pack({"a": entry(shape=[True, 2])}),
    "too many dimensions": pack({"a": entry(shape=[1] * 40 + [2])}),
    "offsets reversed": pack({"a": entry(offsets=[8, 0])}),
    "offsets negative": pack({"a": entry(offsets=[-8, 0])}),
    "three offsets": pack({"a": entry(offsets=[0, 8, 8])}),
    "offsets outside": pack({"a": entry(offsets=[0, 16], shape=[4])}),
    "size is not the shape's": pack({"a": entry(shape=[1])}),
    "overlap": pack({"a": entry(), "b": entry()}),
    "overlap in part": pack({"a": entry(), "b": entry(offsets=[4, 12])}, 12),
    "gap at the start": pack({"a": entry(offsets=[4, 12])}, 12),
    "gap between": pack({"a": entry(), "b": entry(offsets=[12, 20])}, 20),
    "gap at the end": pack({"a": entry()}, 9),
    "name that is not text": pack(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}"),
    "millions of values": pack(b'{"a":[' + b"0," * 2_000_001 + b"0]}"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_header_gives_a_sentence_with_the_file(case: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(MALFORMED[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)


@pytest.mark.parametrize("case", ["unknown dtype", "overlap", "gap between", "offsets outside"])
def test_message_names_the_tensor(case: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(MALFORMED[case])
    with pytest.raises(CheckpointError, match=r"tensor '[ab]'"):
        read_header(file)


def test_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{")
    os.truncate(file, MAX_HEADER_BYTES + 9)  # as large as it claims, and sparse
    with pytest.raises(CheckpointError, match="100,000,000 is the maximum"):
        read_header(file)


def test_millions_of_values_are_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(MALFORMED["millions of values"])
    with pytest.raises(CheckpointError, match="more than 2,000,000 values"):
        read_header(file)


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(pack({"\x1b[31mred": entry("F4")}))
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert "\x1b" not in caught.value.message


def test_valid_header_gives_dtype_shape_and_offsets(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(GOOD)
    tensors = read_header(file)
    data_start = len(GOOD) - 32 - 24  # int64 [4] comes first, as the widest
    assert {name: (t.dtype, t.shape, t.start, t.end) for name, t in tensors.items()} == {
        "b": ("I64", (4,), data_start, data_start + 32),
        "a": ("F32", (2, 3), data_start + 32, data_start + 56),
    }
    assert GOOD[tensors["a"].start : tensors["a"].end] == np.arange(6, dtype=np.float32).tobytes()


def test_empty_tensors_and_scalars_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(save({"none": np.zeros((0, 3), np.float32), "one": np.array(2, np.float32)}))
    assert {name: t.shape for name, t in read_header(file).items()} == {"none": (0, 3), "one": ()}


@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_what_safetensors_rejects_is_rejected(
    position: int, value: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(GOOD[: len(GOOD) - cut])
    if position < len(damaged):
        damaged[position] = value
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    file.write_bytes(damaged)
    try:
        tensors = read_header(file)
    except CheckpointError:
        return
    try:
        expected = dict(deserialize(bytes(damaged)))
    except SafetensorError as error:  # pragma: no cover
        raise AssertionError(f"accepted what safetensors rejects: {error}") from error
    assert {name: list(t.shape) for name, t in tensors.items()} == {
        name: info["shape"] for name, info in expected.items()
    }
