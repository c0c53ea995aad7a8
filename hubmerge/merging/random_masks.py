"""Random bits for the entries of a tensor: which changes DARE and DELLA keep.

They depend on the seed, the tensor's name, the expert's SHA and an entry's place in the tensor;
not on other experts or tensors, nor on the parts in which a tensor is merged. They are raw bits of
numpy's generators, which numpy promises never to change.
"""

from __future__ import annotations

import hashlib
import json
import threading

import numpy as np
from numpy.typing import NDArray

from hubmerge.merging import kernels
from hubmerge.merging.params import DareParams

_ENTRIES_PER_STEP = 8  # Philox makes four numbers of 64 bits at a time
_HALF = 1 << 16
_local = threading.local()


def random_mask(
    params: DareParams, tensor: str, sha: str, start: int, size: int
) -> NDArray[np.bool_]:
    """Whether DARE keeps each of `size` entries of a tensor, from entry `start` on."""
    threshold = round(params.density * 2**32)
    if params.masks == 1:
        return random_bits(params.seed, tensor, sha, start, size) < threshold
    return _is_below(threshold, _digest(params.seed, tensor, sha), start, size)


def random_bits(seed: int, tensor: str, sha: str, start: int, size: int) -> NDArray[np.uint32]:
    """32 random bits for each of `size` entries of a tensor, from entry `start` on."""
    sequence = np.random.SeedSequence(int.from_bytes(_digest(seed, tensor, sha), "big"))
    generator = np.random.Philox(sequence)
    skipped = start % _ENTRIES_PER_STEP
    generator.advance(start // _ENTRIES_PER_STEP)
    raw = generator.random_raw((skipped + size + 1) // 2)
    return raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + size]


def _is_below(threshold: int, digest: bytes, start: int, size: int) -> NDArray[np.bool_]:
    """Whether 32 random bits are below a threshold, of which mostly the upper 16 decide.

    These are made by PCG64DXSM, four entries at a time. One entry of 65,536 needs the lower ones,
    which are a hash of its place.
    """
    upper, lower = divmod(threshold, _HALF)
    if upper == _HALF:
        return np.ones(size, np.bool_)
    if kernels.library() is not None:
        mask, equal = kernels.random_mask(*_seeds(digest), start, size, upper)
        for entry in equal:
            mask[entry] = _lower_bits(digest, start + entry) < lower
        return mask
    skipped = start % 4
    raw = _generator(digest, start // 4).random_raw((skipped + size + 3) // 4)
    bits = raw.astype("<u8", copy=False).view("<u2")[skipped : skipped + size]
    below: NDArray[np.bool_] = bits < upper
    for entry in np.flatnonzero(bits == upper).tolist():
        below[entry] = _lower_bits(digest, start + entry) < lower
    return below


def _generator(digest: bytes, steps: int) -> np.random.PCG64DXSM:
    """The generator of this thread, which a digest seeds, after a number of steps."""
    if not hasattr(_local, "generator"):
        _local.generator = np.random.PCG64DXSM(0)
    generator: np.random.PCG64DXSM = _local.generator
    state, increment = _seeds(digest)
    generator.state = {
        "bit_generator": "PCG64DXSM",
        "state": {"state": state, "inc": increment | 1},  # as it must be odd
        "has_uint32": 0,
        "uinteger": 0,
    }
    generator.advance(steps)
    return generator


def _seeds(digest: bytes) -> tuple[int, int]:
    """State and increment of a generator that a digest seeds."""
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:], "big")


def _lower_bits(digest: bytes, entry: int) -> int:
    return int.from_bytes(hashlib.sha256(digest + entry.to_bytes(8, "big")).digest()[:2], "big")


def _digest(seed: int, tensor: str, sha: str) -> bytes:
    return hashlib.sha256(json.dumps([seed, tensor, sha]).encode()).digest()
