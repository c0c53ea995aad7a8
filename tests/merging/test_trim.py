"""The streamed k-th smallest magnitude, compared with sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hubmerge.merging.trim import kth_magnitudes

FLOATS = st.floats(width=32, allow_nan=False)
# Few values, so that ties and neighbours within one bin of 2^16 are common.
NEAR = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.float32(1) + np.float32(2**-23), 1e-45, 3.0])


@given(
    parts=st.lists(arrays(np.float32, st.integers(0, 40), elements=FLOATS | NEAR), min_size=1),
    data=st.data(),
)
def test_same_as_partition(parts: list[np.ndarray], data: st.DataObject) -> None:
    magnitudes = np.abs(np.concatenate(parts))
    rank = data.draw(st.integers(0, magnitudes.size))
    expected = np.partition(magnitudes, rank - 1)[rank - 1] if rank else np.float32(0)
    calls: list[int] = []

    def rank_of(count: int) -> int:
        calls.append(count)
        return rank

    (kth,) = kth_magnitudes(lambda: [[part] for part in parts], rank_of)
    assert kth.tobytes() == expected.tobytes()
    assert calls == [magnitudes.size]


def test_columns_are_separate_and_span_blocks() -> None:
    rng = np.random.default_rng(0)
    size = (1 << 18) * 2 + 12345  # two blocks and a piece
    columns = [rng.normal(size=(size,)).astype(np.float32) * scale for scale in (1, 1e-3)]
    kth = kth_magnitudes(lambda: [columns], lambda count: count - int(count * 0.2))
    rank = size - int(size * 0.2)
    assert list(kth) == [np.partition(np.abs(c), rank - 1)[rank - 1] for c in columns]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_wider_values_are_ranked_as_float32(dtype: type) -> None:
    values = np.array([[0.1, -0.2], [0.3, 1e300 if dtype is np.float64 else 1e30]], dtype)
    assert kth_magnitudes(lambda: [[values]], lambda _: 3) == (np.float32(0.3),)


def test_empty_stream_has_no_columns() -> None:
    assert kth_magnitudes(lambda: [], lambda _: 1) == ()
