"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re

from hubmerge.errors import UsageError

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?i?b)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str, option: str) -> int:
    """The number in `2GB` (10^9) or `2GiB` (2^30); UsageError, with the option, for other text."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text[:40]!r} is not a number of bytes.", "Write 2GB or 500MB.")
    amount, prefix = float(match[1]), match[2].lower().removesuffix("b")
    step = 1024 if prefix.endswith("i") else 1000
    return int(amount * step ** _POWERS[prefix.removesuffix("i")])


def format_bytes(size: float) -> str:
    """A number of bytes with its unit, in powers of 1000."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:,.1f} TB"
