"""What a LoRA keeps of the change that it was made from, in sentences and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hubmerge.cards.markdown import escape_markdown
from hubmerge.cards.number_format import percent
from hubmerge.manifest import Manifest
from hubmerge.refs import printable
from hubmerge.weights.kept_shares import KeptShares, parse_shares

_MOST_IN_SENTENCE, _MOST_ROWS = 5, 20


def describe_adapter(shares: KeptShares) -> str:
    """Its rank and how much it keeps, as the end of a sentence, without a full stop."""
    text = f"a LoRA of rank {shares.rank} that keeps {_share(shares.kept)} of the squared change"
    if shares.attainable - shares.kept < 5e-5:
        return text
    return f"{text}; without a limit on the rank it were {_share(shares.attainable)}"


def describe_left_out(shares: KeptShares) -> Iterator[str]:
    """A sentence on the tensors that changed and are not in it; nothing if there are none."""
    rows = _largest_first(shares.left_out)
    if not rows:
        return
    listed = ", ".join(
        f"{printable(name)} ({_share(share)})" for name, share in rows[:_MOST_IN_SENTENCE]
    )
    rest = rows[_MOST_IN_SENTENCE:]
    more = f" and {len(rest)} more ({_share(sum(s for _, s in rest))} together)" if rest else ""
    yield (
        f"Changed, but not in the adapter, with shares of the squared change: {listed}{more}. "
        "A LoRA changes only matrices of layers."
    )


def lora_section(manifest: Manifest) -> dict[str, Any] | None:
    """The variables of the section on an adapter; None for a model that was not factored."""
    shares = parse_shares(manifest.training.get("lora"))
    if shares is None:
        return None
    least = sorted(shares.modules.items(), key=lambda row: (row[1], row[0]))
    left_out = _largest_first(shares.left_out)
    return {
        "summary": f"It is {describe_adapter(shares)}.",
        "left_out": _rows(left_out[:_MOST_ROWS]),
        "more_left_out": max(len(left_out) - _MOST_ROWS, 0),
        "modules": _rows(least[:_MOST_ROWS]),
        "module_count": len(least),
    }


def _largest_first(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda row: (-row[1], row[0]))


def _rows(shares: list[tuple[str, float]]) -> list[tuple[str, str]]:
    return [(escape_markdown(name), _share(share)) for name, share in shares]


def _share(value: float) -> str:
    """A share as percent; a small one is not shown as zero, nor a large one as everything."""
    if 0 < value < 5e-5:
        return "less than 0.01 %"
    if 1 - 5e-5 < value < 1:
        return "more than 99.99 %"
    return f"{percent(value)} %"
