"""Store a checkpoint as a bfloat16 delta to its base, and restore it: what is kept, how exactly."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.delta_file import (
    DELTA_WEIGHTS,
    Piece,
    full_bytes,
    measure_rounding,
    open_delta,
    plan_delta,
    restore,
    stored_bytes,
    write_delta,
)

Tensors = dict[str, np.ndarray]
BF16 = ml_dtypes.bfloat16


def write_checkpoint(folder: Path, tensors: Tensors) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def round_trip(root: Path, base: Tensors, expert: Tensors) -> tuple[Checkpoint, ...]:
    """The base, the original, and the checkpoint restored from its delta."""
    base_checkpoint, original = (
        write_checkpoint(root / "base", base),
        write_checkpoint(root / "expert", expert),
    )
    pieces = plan_delta(base_checkpoint, original)
    for name in ("delta", "back"):
        (root / name).mkdir(exist_ok=True)
    write_delta(base_checkpoint, original, pieces, root / "delta")
    restore(base_checkpoint, open_delta(root / "delta"), pieces, root / "back", None)
    return base_checkpoint, original, open_checkpoint(root / "back")


def storage_by_name(base: Tensors, expert: Tensors, root: Path) -> dict[str, str]:
    pieces = plan_delta(
        write_checkpoint(root / "base", base), write_checkpoint(root / "expert", expert)
    )
    return {piece.name: piece.how for piece in pieces}


def test_numbers_computed_by_hand(tmp_path: Path) -> None:
    base = {"w": np.array([1.0, 1.0, 0.0], np.float32)}
    # bfloat16 has 8 bits: 1 + 2^-9 is rounded to even, 0.25 is exact.
    expert = {"w": np.array([1.25, 2.0 + 2**-9, 1.0 + 2**-9], np.float32)}
    base_checkpoint, original, restored = round_trip(tmp_path, base, expert)
    assert load_file(tmp_path / "delta" / DELTA_WEIGHTS)["w"].tolist() == [0.25, 1.0, 1.0]
    assert restored.read("w").tolist() == [1.25, 2.0, 1.0]
    rounding = measure_rounding(base_checkpoint, original, restored)
    assert (rounding.absolute, rounding.exact) == (2**-9, False)
    assert rounding.relative == 2**-9 / (1 + 2**-9)


def test_storage_of_each_kind_of_tensor(tmp_path: Path) -> None:
    f32 = np.ones(4, np.float32)
    base = {
        "same": f32, "moved": f32, "half": f32.astype(BF16), "ids": np.arange(4), "grown": f32,
        "lost": f32, "wide": f32.astype(np.float64), "nan": f32, "huge": -3e38 * f32,
        "of half": f32.astype(np.float16),
    }  # fmt: skip
    expert = {
        "same": f32, "moved": 1.5 * f32, "half": (1.5 * f32).astype(BF16), "ids": np.arange(4) + 1,
        "grown": np.ones(5, np.float32), "new": f32, "wide": f32.astype(np.float64) + 1,
        "nan": np.nan * f32, "huge": 3e38 * f32, "of half": 1.5 * f32,
    }  # fmt: skip
    assert storage_by_name(base, expert, tmp_path) == {
        "same": "base", "moved": "delta", "half": "whole", "ids": "whole", "grown": "whole",
        "new": "whole", "wide": "delta", "nan": "whole", "huge": "whole", "of half": "delta",
    }  # fmt: skip
    _, original, restored = round_trip(tmp_path, base, expert)
    assert restored.index.keys() == original.index.keys()
    for name in original.names():
        expected, actual = original.read(name), restored.read(name)
        assert (expected.dtype, expected.tobytes()) == (actual.dtype, actual.tobytes()), name


def test_changed_float32_takes_half_the_bytes_and_unchanged_none(tmp_path: Path) -> None:
    base = {"a": np.zeros(100, np.float32), "b": np.zeros(100, np.float32)}
    pieces = plan_delta(
        write_checkpoint(tmp_path / "base", base),
        write_checkpoint(tmp_path / "expert", {**base, "a": base["a"] + 1}),
    )
    assert (full_bytes(pieces), stored_bytes(pieces)) == (800, 200)


def test_bfloat16_saves_nothing(tmp_path: Path) -> None:
    base, expert = ({"w": np.full(100, v, BF16)} for v in (1, 2))
    pieces = plan_delta(
        write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "expert", expert)
    )
    assert full_bytes(pieces) == stored_bytes(pieces) == 200


def test_delta_of_an_unchanged_expert_is_empty(tmp_path: Path) -> None:
    base = {"w": np.ones(3, np.float32)}
    base_checkpoint, original, restored = round_trip(tmp_path, base, base)
    assert measure_rounding(base_checkpoint, original, restored).exact
    assert open_delta(tmp_path / "delta").index == {}


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    base = {"w": np.ones(3, np.float32), "h": np.ones(3, BF16)}
    expert = {"w": np.full(3, 1.3, np.float32), "h": np.zeros(3, BF16)}
    for name in ("one", "two"):
        round_trip(tmp_path / name, base, expert)
    for file in (f"delta/{DELTA_WEIGHTS}", "back/model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_sign_of_zero_is_not_an_error(tmp_path: Path) -> None:
    base = {"w": np.array([0.0], np.float32)}
    base_checkpoint, original, restored = round_trip(
        tmp_path, base, {"w": np.array([-0.0], np.float32)}
    )
    rounding = measure_rounding(base_checkpoint, original, restored)
    assert (rounding.absolute, rounding.relative, rounding.exact) == (0.0, 0.0, False)


floats = hnp.arrays(np.float32, 16, elements=st.floats(-(2.0**100), 2.0**100, width=32))


@settings(max_examples=50)
@given(base=floats, expert=floats)
def test_rounding_stays_within_half_a_bfloat16(
    tmp_path_factory: pytest.TempPathFactory, base: np.ndarray, expert: np.ndarray
) -> None:
    root = tmp_path_factory.mktemp("any")
    base_checkpoint, original, restored = round_trip(root, {"w": base}, {"w": expert})
    change = np.abs(expert.astype(np.float64) - base).max()
    # Half a unit of 8 bits of the change, and of 24 bits of the numbers it is taken from.
    limit = change * 2**-8 + 2**-22 * max(np.abs(base).max(), np.abs(expert).max()) + 2**-133
    assert measure_rounding(base_checkpoint, original, restored).absolute <= limit


def test_shards_are_restored_as_shards(tmp_path: Path) -> None:
    folder = tmp_path / "expert"
    base = {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}
    folder.mkdir()
    for number, name in ((1, "a"), (2, "b")):
        save_file({name: base[name] + 1}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", '
        '"b": "model-00002-of-00002.safetensors"}}'
    )
    base_checkpoint, original = write_checkpoint(tmp_path / "base", base), open_checkpoint(folder)
    pieces = plan_delta(base_checkpoint, original)
    for name in ("delta", "back"):
        (tmp_path / name).mkdir()
    write_delta(base_checkpoint, original, pieces, tmp_path / "delta")
    index = "model.safetensors.index.json"
    restore(base_checkpoint, open_delta(tmp_path / "delta"), pieces, tmp_path / "back", index)
    restored = open_checkpoint(tmp_path / "back")
    assert restored.weight_file_names() == original.weight_file_names()
    assert restored.read("b").tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"}, {"shape": (9,)}, {"shape": (2**40,)}, {"dtype": "I64"},
        {"how": "base"}, {"how": "whole"},
    ],
)  # fmt: skip
def test_pieces_that_do_not_fit_are_rejected_before_writing(
    tmp_path: Path, change: dict[str, object]
) -> None:
    base, expert = ({"w": np.full(4, v, np.float32)} for v in (1, 2))
    base_checkpoint, _, _ = round_trip(tmp_path, base, expert)
    fields = {"name": "w", "file": "m.safetensors", "dtype": "F32", "shape": (4,), "how": "delta"}
    piece = Piece(**{**fields, **change})  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError):
        restore(base_checkpoint, open_delta(tmp_path / "delta"), [piece], tmp_path / "out", None)
    with pytest.raises(CheckpointError):
        restore(
            base_checkpoint, open_delta(tmp_path / "delta"), [piece, piece], tmp_path / "out", None
        )
    assert not list((tmp_path / "out").iterdir())


def test_adapter_is_rejected(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"w": np.ones(2, np.float32)})
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"w": np.ones(2, np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="adapter"):
        plan_delta(base, open_checkpoint(folder))
