"""Text without secrets, for everything that is printed, written or shown."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


def redact_tokens(text: str) -> str:
    """Text with every Hub access token replaced by `hf_***`."""
    return _TOKEN.sub("hf_***", text)
