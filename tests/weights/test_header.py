"""Hostile headers: each is refused with a sentence that names the file, before memory is spent."""

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
from hubmerge.weights.header import HEADER_CAP, read_header

GOOD = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(4, np.int64)})


def packed(header: object, data: int = 8) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def entry(
    dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def twice(name: str) -> bytes:
    one = json.dumps(entry())
    return f'{{"{name}":{one},"{name}":{one}}}'.encode()


HOSTILE = {
    "empty": b"",
    "less than a length": b"\x01\x02\x03",
    "cut in the header": GOOD[:20],
    "cut in the middle of the data": GOOD[:-20],
    "last byte cut": GOOD[:-1],
    "a byte too many": GOOD + b"\0",
    "header over the cap": struct.pack("<Q", 100_000_001) + b"{" + b" " * 100,
    "header of 2^64": struct.pack("<Q", 2**64 - 1) + b"{}",
    "blank before the header": packed(b' {"a":' + json.dumps(entry()).encode() + b"}"),
    "not JSON": packed(b"{nonsense}"),
    "not UTF-8": packed(b'{"\xff":1}'),
    "not an object": packed([1]),
    "NaN is not JSON": packed(b'{"a":NaN}'),
    "nested too deeply": packed(b'{"a":' * 200_000),
    "number of too many digits": packed(b'{"a":' + b"9" * 9999 + b"}"),
    "key twice": packed(twice("a")),
    "metadata twice": packed(b'{"__metadata__":{},"__metadata__":{}}', 0),
    "metadata not text": packed({"__metadata__": {"a": 1}, "x": entry()}),
    "entry not an object": packed({"a": 1}),
    "entry with another key": packed({"a": entry() | {"x": 1}}),
    "entry lacks a key": packed({"a": {"dtype": "F32", "shape": [2]}}),
    "unknown dtype": packed({"a": entry("F4")}),
    "dtype not text": packed({"a": entry(["F32"])}),
    "huge shape": packed({"a": entry(shape=[2**62, 2**62])}),
    "shape over 64 bits": packed({"a": entry(shape=[2**64])}),
    "shape wraps to right size": packed({"a": entry(shape=[2**32, 2**32, 2])}),
    "negative shape": packed({"a": entry(shape=[-1, -2])}),
    "fractional shape": packed({"a": entry(shape=[2.0])}),
    "shape of booleans": packed({"a": entry(shape=[True, 2])}),
    "too many dimensions": packed({"a": entry(shape=[1] * 40 + [2])}),
    "offsets reversed": packed({"a": entry(offsets=[8, 0])}),
    "offsets negative": packed({"a": entry(offsets=[-8, 0])}),
    "three offsets": packed({"a": entry(offsets=[0, 8, 8])}),
    "offsets outside": packed({"a": entry(offsets=[0, 16], shape=[4])}),
    "size is not the shape's": packed({"a": entry(shape=[1])}),
    "overlap": packed({"a": entry(), "b": entry()}),
    "overlap in part": packed({"a": entry(), "b": entry(offsets=[4, 12])}, 12),
    "hole at the start": packed({"a": entry(offsets=[4, 12])}, 12),
    "hole between": packed({"a": entry(), "b": entry(offsets=[12, 20])}, 20),
    "hole at the end": packed({"a": entry()}, 9),
    "name that is not text": packed(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}"),
    "millions of values": packed(b'{"a":[' + b"0," * 2_000_001 + b"0]}"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header_is_refused_by_name(case: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(HOSTILE[case])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)


@pytest.mark.parametrize("case", ["unknown dtype", "overlap", "hole between", "offsets outside"])
def test_tensor_is_named_too(case: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(HOSTILE[case])
    with pytest.raises(CheckpointError, match=r"tensor '[ab]'"):
        read_header(file)


def test_header_over_the_cap_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", HEADER_CAP + 1) + b"{")
    os.truncate(file, HEADER_CAP + 9)  # as large as it claims, and sparse
    with pytest.raises(CheckpointError, match="100,000,000 is the most"):
        read_header(file)


def test_millions_of_values_are_refused_unparsed(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(HOSTILE["millions of values"])
    with pytest.raises(CheckpointError, match="more than 2,000,000 values"):
        read_header(file)


def test_name_that_would_speak_to_a_terminal_is_escaped(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(packed({"\x1b[31mred": entry("F4")}))
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert "\x1b" not in caught.value.message


def test_good_header_tells_where_each_tensor_lies(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(GOOD)
    found = read_header(file)
    begin = len(GOOD) - 32 - 24  # int64 [4] comes first, as the widest
    assert {name: (t.dtype, t.shape, t.start, t.end) for name, t in found.items()} == {
        "b": ("I64", (4,), begin, begin + 32),
        "a": ("F32", (2, 3), begin + 32, begin + 56),
    }
    assert GOOD[found["a"].start : found["a"].end] == np.arange(6, dtype=np.float32).tobytes()


def test_empty_tensors_and_scalars_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(save({"none": np.zeros((0, 3), np.float32), "one": np.array(2, np.float32)}))
    assert {name: t.shape for name, t in read_header(file).items()} == {"none": (0, 3), "one": ()}


@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_damaged_bytes_never_pass_where_the_library_refuses(
    position: int, value: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(GOOD[: len(GOOD) - cut])
    if position < len(damaged):
        damaged[position] = value
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    file.write_bytes(damaged)
    try:
        found = read_header(file)
    except CheckpointError:
        return
    try:
        theirs = dict(deserialize(bytes(damaged)))
    except SafetensorError as error:  # pragma: no cover
        raise AssertionError(f"accepted what safetensors refuses: {error}") from error
    assert {name: list(t.shape) for name, t in found.items()} == {
        name: info["shape"] for name, info in theirs.items()
    }
