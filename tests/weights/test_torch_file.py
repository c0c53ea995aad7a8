"""Files of torch.save, read without torch: real ones, and hostile ones that must not run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.state_dict import find_state_dict, write_state_dicts
from hubmerge.weights.torch_file import open_torch_file

MAX_MEMORY = 32 << 20


def read(path: Path, out: Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file after they were written as safetensors."""
    out.mkdir()
    write_state_dicts({"model.safetensors": find_state_dict(open_torch_file(path), key)}, out)
    checkpoint = open_checkpoint(out)
    return {name: checkpoint.read(name) for name in checkpoint.names()}


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def values(dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(12).reshape(3, 4) % 2).to(dtype)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_dtype_and_view(tmp_path: Path, legacy: bool, protocol: int) -> None:
    matrix = torch.randn(6, 5)
    state = {str(dtype): values(dtype) for dtype in DTYPES}
    state |= {
        "transposed": matrix.T, "slice": matrix[1:4, ::2], "tied": matrix, "scalar": matrix[2, 3],
        "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(matrix.clone()),
    }  # fmt: skip
    options = {} if legacy is False else {"_use_new_zipfile_serialization": False}
    torch.save(
        collections.OrderedDict(state), tmp_path / "a.bin", pickle_protocol=protocol, **options
    )
    tensors = read(tmp_path / "a.bin", tmp_path / "out")
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.detach().float().numpy()
        assert np.array_equal(tensors[name].astype(np.float32), expected), name


def test_the_state_dict_of_a_module_with_its_versions(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), tmp_path / "a.pt")
    tensors = read(tmp_path / "a.pt", tmp_path / "out")
    assert tensors.keys() == module.state_dict().keys()


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module"])
def test_a_state_dict_in_a_checkpoint_of_training(tmp_path: Path, key: str) -> None:
    weights = {"w": torch.ones(2)}
    saved = {"epoch": 3, "lr": 0.1, "args": {"name": "x", "sizes": [1, (2, 3)]}, key: weights,
             "optimizer": {"state": {0: {"m": torch.zeros(2)}}}}  # fmt: skip
    torch.save(saved, tmp_path / "a.ckpt")
    state = find_state_dict(open_torch_file(tmp_path / "a.ckpt"))
    assert list(state.tensors) == ["w"]
    assert set(state.left_out) == {"epoch", "lr", "args", "optimizer"}


def test_several_state_dicts_need_a_key(tmp_path: Path) -> None:
    torch.save({"ema": {"w": torch.ones(2)}, "raw": {"w": torch.zeros(2)}}, tmp_path / "a.pt")
    file = open_torch_file(tmp_path / "a.pt")
    with pytest.raises(UsageError, match="several dicts of tensors: ema, raw") as refused:
        find_state_dict(file)
    assert "--key" in refused.value.hint
    assert read(tmp_path / "a.pt", tmp_path / "out", "ema")["w"].tolist() == [1, 1]
    with pytest.raises(UsageError, match="no dict 'other'"):
        find_state_dict(file, "other")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2), "one tensor without a name"),
        ([torch.ones(2)], "a list"),
        ({"a": 1}, "no tensors with names"),
        ({}, "no tensors with names"),
        (torch.nn.Linear(2, 2), "whole pickled module"),
        ({"m": torch.nn.Linear(2, 2)}, "whole pickled module"),
        ({"w": torch.ones(2), "a": np.ones(2)}, "would run code"),
        ({"w": torch.ones(2), "a": Path("x")}, "would run code"),
        ({"w": torch.ones(2).to_sparse()}, "would run code"),
        ({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "would run code"),
    ],
)
def test_values_that_are_no_state_dict(tmp_path: Path, value: Any, message: str) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        find_state_dict(open_torch_file(tmp_path / "a.pt"))


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


CANARY = "hubmerge-canary"
TOUCH = f"touch {CANARY}"


def archive(pickled: bytes, **entries: bytes) -> bytes:
    """A file of torch.save with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in {"version": b"3", **entries}.items():
            file.writestr(f"archive/{name.replace('__', '/')}", data)
    return buffer.getvalue()


def tensor_pickle(storage: bytes, shape: bytes, strides: bytes, offset: bytes = b"K\x00") -> bytes:
    """A dict of one tensor, instruction by instruction."""
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset
        + shape + strides + b"\x89ccollections\nOrderedDict\n)RtRs."
    )  # fmt: skip


def storage_id(key: bytes = b"0", kind: bytes = b"FloatStorage", count: bytes = b"K\x02") -> bytes:
    text = b"X" + struct.pack("<I", len(key)) + key
    return (
        b"(X\x07\x00\x00\x00storagectorch\n" + kind + b"\n" + text + b"X\x03\x00\x00\x00cpu"
        + count + b"tQ"
    )  # fmt: skip


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))
        file.writestr("archive/data/0", bytes(200 << 20))
    return buffer.getvalue()


def many_entries() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))
        file.writestr("other/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("pickle")
        data = pickle.dumps(Calls(os.system, TOUCH))
        info.size = len(data)
        file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def nested_lists(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def memo_bomb(levels: int = 60) -> bytes:
    """A list of two references to a list of two references ... to one tensor."""
    start = tensor_pickle(storage_id(), b"K\x02\x85", b"K\x01\x85")[2:-1] + b"q\x00"
    doubled = b"".join(
        b"0](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(levels)
    )
    return b"\x80\x02" + start + doubled + b"."


def legacy(value: bytes, keys: object = (), rest: bytes = b"") -> bytes:
    magic, version = pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)
    facts = pickle.dumps({"little_endian": True}, 2)
    return magic + version + facts + value + pickle.dumps(list(keys), 2) + rest


ONE = storage_id()
HOSTILE: dict[str, Callable[[], bytes]] = {
    "os.system": lambda: archive(pickle.dumps(Calls(os.system, TOUCH))),
    "os.system in a state dict": lambda: archive(pickle.dumps({"w": Calls(os.system, TOUCH)})),
    "os.system, protocol 0": lambda: archive(pickle.dumps(Calls(os.system, TOUCH), 0)),
    "os.system, protocol 4": lambda: archive(pickle.dumps(Calls(os.system, TOUCH), 4)),
    "eval": lambda: archive(pickle.dumps(Calls(eval, f"open({CANARY!r}, 'w')"))),
    "exec": lambda: archive(pickle.dumps(Calls(exec, f"open({CANARY!r}, 'w')"))),
    "open": lambda: archive(pickle.dumps(Calls(open, CANARY, "w"))),
    "getattr chain": lambda: archive(
        pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system"))
    ),
    "import": lambda: archive(pickle.dumps(Calls(__import__, "antigravity"))),
    "runpy": lambda: archive(b"crunpy\n_run_code\n(S'x'\ntR."),
    "nested pickle": lambda: archive(pickle.dumps(Calls(pickle.loads, pickle.dumps(1)))),
    "torch.load": lambda: archive(pickle.dumps(Calls(torch.load, "/dev/null"))),
    "inst": lambda: archive(b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n."),
    "obj": lambda: archive(b"(cos\nsystem\nS'" + TOUCH.encode() + b"'\no."),
    "newobj": lambda: archive(b"\x80\x02csubprocess\nPopen\nX\x04\x00\x00\x00true\x85\x81."),
    "newobj_ex": lambda: archive(b"\x80\x04\x8c\nsubprocess\x8c\x05Popen\x93)}\x92."),
    "extension": lambda: archive(b"\x80\x02\x82\x01."),
    "dotted name": lambda: archive(b"\x80\x04\x8c\x05torch\x8c\x10_utils.os.system\x93."),
    "torch attribute": lambda: archive(b"\x80\x02ctorch\nos.system\n."),
    "allowed prefix": lambda: archive(b"\x80\x02ctorch._utils._rebuild_tensor_v2.x\nsystem\n."),
    "reduce of a tensor": lambda: archive(
        tensor_pickle(ONE, b"K\x02\x85", b"K\x01\x85")[:-1] + b")R."
    ),
    "build with code": lambda: archive(
        b"\x80\x02ccollections\nOrderedDict\n)RX\x01\x00\x00\x00xcos\nsystem\nb."
    ),
    "persistent id of another file": lambda: archive(
        tensor_pickle(storage_id(b"../../../etc/passwd"), b"K\x02\x85", b"K\x01\x85")
    ),
    "persistent id as text": lambda: archive(b"P/etc/passwd\n."),
    "persistent id of a module": lambda: archive(
        b"\x80\x02(X\x06\x00\x00\x00modulectorch\nFloatStorage\nX\x01\x00\x00\x000K\x00K\x02tQ."
    ),
    "storage that is missing": lambda: archive(tensor_pickle(ONE, b"K\x02\x85", b"K\x01\x85")),
    "storage of another size": lambda: archive(
        tensor_pickle(ONE, b"K\x02\x85", b"K\x01\x85"), data__0=bytes(4)
    ),
    "tensor outside of its storage": lambda: archive(
        tensor_pickle(ONE, b"K\x02\x85", b"K\x05\x85"), data__0=bytes(8)
    ),
    "offset outside of its storage": lambda: archive(
        tensor_pickle(ONE, b"K\x02\x85", b"K\x01\x85", b"J\xff\xff\xff\x7f"), data__0=bytes(8)
    ),
    "negative offset": lambda: archive(
        tensor_pickle(ONE, b"K\x02\x85", b"K\x01\x85", b"J\xff\xff\xff\xff"), data__0=bytes(8)
    ),
    "repeated values": lambda: archive(
        tensor_pickle(ONE, b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"), data__0=bytes(8)
    ),
    "negative shape": lambda: archive(
        tensor_pickle(ONE, b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), data__0=bytes(8)
    ),
    "huge number": lambda: archive(
        tensor_pickle(ONE, b"\x8a\xff" + b"\x7f" * 255 + b"\x85", b"K\x01\x85"), data__0=bytes(8)
    ),
    "huge number as text": lambda: archive(b"L" + b"9" * 1_000_000 + b"L\n."),
    "unknown storage": lambda: archive(
        tensor_pickle(storage_id(kind=b"QInt8Storage"), b"K\x02\x85", b"K\x01\x85")
    ),
    "zip bomb": compressed,
    "two pickles": many_entries,
    "no pickle": lambda: archive(b"")[:30],
    "cut short": lambda: archive(pickle.dumps({"a": 1}))[:-40],
    "damaged pickle": lambda: archive(b"\x80\x02}q\x00(X\x05\x00\x00\x00ab"),
    "no stop": lambda: archive(b"\x80\x02}"),
    "empty stack": lambda: archive(b"."),
    "pop of nothing": lambda: archive(b"000."),
    "unknown memory": lambda: archive(b"h\x05."),
    "deep lists": lambda: archive(nested_lists(100_000)),
    "memo bomb": lambda: archive(memo_bomb(), data__0=bytes(8)),
    "unhashable key": lambda: archive(b"\x80\x02}]K\x01s."),
    "list that holds itself": lambda: archive(b"\x80\x02]q\x00h\x00a."),
    "numpy object array": lambda: archive(
        pickle.dumps({"a": np.array([Calls(os.system, TOUCH)], dtype=object)})
    ),
    "plain pickle": lambda: pickle.dumps(Calls(os.system, TOUCH)),
    "plain pickle of a dict": lambda: pickle.dumps({"a": 1}),
    "legacy with code": lambda: legacy(pickle.dumps(Calls(os.system, TOUCH), 2)),
    "legacy tar": tar,
    "legacy of a huge storage": lambda: legacy(
        tensor_pickle(storage_id(count=b"J\xff\xff\xff\x7f"), b"K\x02\x85", b"K\x01\x85"),
        ["0"], struct.pack("<q", 2**31 - 1),
    ),
    "legacy of a negative storage": lambda: legacy(
        tensor_pickle(ONE, b"K\x02\x85", b"K\x01\x85"), ["0"], struct.pack("<q", -2)
    ),
    "legacy cut short": lambda: legacy(tensor_pickle(ONE, b"K\x02\x85", b"K\x01\x85"), ["0"]),
    "text": lambda: b"not a checkpoint",
    "empty": lambda: b"",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_never_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.bin").write_bytes(HOSTILE[name]())
    modules = set(sys.modules)
    tracemalloc.start()
    try:
        with pytest.raises((CheckpointError, UsageError)) as refused:
            read(tmp_path / "a.bin", tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(tmp_path / "a.bin") in refused.value.message
    assert peak < MAX_MEMORY
    assert not (tmp_path / CANARY).exists()
    assert not {"antigravity", "runpy"} & (set(sys.modules) - modules)


def test_tensors_that_would_fill_the_disk(tmp_path: Path) -> None:
    shared = torch.zeros(1 << 20)
    torch.save({f"w{n}": shared for n in range(200)}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match="would fill the disk"):
        read(tmp_path / "a.bin", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
