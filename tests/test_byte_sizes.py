"""Numbers of bytes, typed and printed."""

from __future__ import annotations

import pytest

from hubmerge.byte_sizes import format_bytes, parse_bytes
from hubmerge.errors import UsageError


@pytest.mark.parametrize(("text", "size"), [
    ("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("7B", 7), ("1kb", 1000),
])  # fmt: skip
def test_what_is_typed(text: str, size: int) -> None:
    assert parse_bytes(text, "--memory") == size


@pytest.mark.parametrize("text", ["2", "GB", "-1GB", "2 GBB", "1e3MB", ""])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_bytes(text, "--memory")


def test_what_is_printed() -> None:
    sizes = (999, 1000, 999_949, 999_950, 5 * 10**9, 2 * 10**13)
    expected = ["999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "5.0 GB", "20.0 TB"]
    assert [format_bytes(size) for size in sizes] == expected
