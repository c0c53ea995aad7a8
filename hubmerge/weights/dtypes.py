"""The number formats of safetensors, by name, as numpy dtypes.

bfloat16 and the two float8 come from ml_dtypes, whose casts round to nearest, ties to even. Formats
that pack two values in a byte (F4), or that numpy cannot represent, are not listed and rejected.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from hubmerge.errors import UnknownName

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_INTEGERS: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
}
DTYPES: dict[str, np.dtype[Any]] = FLOATS | _INTEGERS
# What torch calls them, and what people type.
_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_ALIASES = {name: dtype for dtype, name in _TORCH_NAMES.items()} | {
    "double": "F64", "float": "F32", "fp32": "F32", "half": "F16", "fp16": "F16",
}  # fmt: skip


def is_float(dtype: str) -> bool:
    """Whether values of this safetensors dtype can be subtracted and averaged."""
    return dtype in FLOATS


def float_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype of a floating-point safetensors dtype; UnknownName if it is not one."""
    if dtype not in FLOATS:
        raise UnknownName("floating-point dtype", dtype, FLOATS)
    return FLOATS[dtype]


def float_dtype_name(name: str) -> str:
    """The safetensors name of a dtype, from that or torch's name: "bfloat16" and "bf16" are BF16.

    An unknown name is returned as it is.
    """
    word = name.removeprefix("torch.")
    return word.upper() if word.upper() in FLOATS else _ALIASES.get(word.lower(), name)


def torch_dtype_name(dtype: str) -> str:
    """What torch calls a floating-point dtype of safetensors: "bfloat16" for BF16."""
    return _TORCH_NAMES[dtype]


def compute_dtype(dtype: str) -> np.dtype[Any]:
    """The dtype for arithmetic on this dtype: float64 for F64, float32 for everything else."""
    return np.dtype(np.float64 if dtype == "F64" else np.float32)


def cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Round values to a dtype (nearest, ties to even); values out of range become inf or NaN.

    numpy's warnings are silenced, as the caller checks for such values.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return values.astype(dtype, copy=False)
