"""plan.json: what would be kept and dropped, and what it was decided from; nothing is done yet."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.refs import check_repo_id, check_revision, is_sha, printable, step_of
from hubmerge.retention.choice import Verdict, stored
from hubmerge.retention.evidence import Regret

FORMAT = 1
# An assumption, stated wherever money is: public storage beyond what an account includes, from
# $12 per TB and month (huggingface.co/changelog, 26 February 2026).
USD_PER_GB_MONTH = 0.012

_BYTES = 200_000_000
_BUDGET = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(%|usd|[kmgt]?i?b)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_CONTENT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Plan:
    """A decision on every tag and branch of some repositories.

    `locks` are the SHA-256 of the locks that were heeded, `budget` is as it was typed.
    """

    verdicts: tuple[Verdict, ...]
    regrets: tuple[Regret, ...] = ()
    locks: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    budget: str | None = None
    usd_per_gb_month: float = USD_PER_GB_MONTH
    format: int = FORMAT

    @property
    def kept(self) -> tuple[Verdict, ...]:
        return tuple(one for one in self.verdicts if one.keep)

    @property
    def dropped(self) -> tuple[Verdict, ...]:
        return tuple(one for one in self.verdicts if not one.keep)

    @property
    def repos(self) -> tuple[str, ...]:
        return tuple(sorted({one.repo for one in self.verdicts}))

    @property
    def totals(self) -> dict[str, float]:
        """Bytes of what is kept, bytes that only the dropped hold, and what both cost a month."""
        kept = stored(self.kept)
        alone = stored(self.verdicts) - kept
        return {
            "bytes_kept": kept,
            "bytes_dropped": alone,
            "usd_per_month_kept": self.cost(kept),
            "usd_per_month_dropped": self.cost(alone),
        }

    def cost(self, size: int) -> float:
        """US dollars a month for that many bytes."""
        return round(size / 10**9 * self.usd_per_gb_month, 6)

    def to_bytes(self) -> bytes:
        """Canonical JSON, sealed with a digest: the same plan is the same bytes."""
        said = dataclasses.asdict(self)
        said["verdicts"] = [{**dataclasses.asdict(v), "bytes": v.size} for v in self.verdicts]
        said["regrets"] = [{**dataclasses.asdict(r), "regret": r.value} for r in self.regrets]
        return _canonical({**said, "totals": self.totals})


def parse_plan(data: bytes, where: str) -> Plan:
    """Read a plan; raises IntegrityError for one that was not left as it was made."""
    try:
        if len(data) > _BYTES:
            raise ValueError(f"larger than {_BYTES} bytes")
        said = json.loads(data)
        if said.get("format") != FORMAT:
            raise ValueError(f"of a format that this hubmerge does not know ({FORMAT} it does)")
        plan = TypeAdapter(Plan).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IntegrityError(f"{where} is no plan: {printable(reason)[:200]}.") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{where} is no plan: {printable(str(error))[:200]}.") from error
    if plan.to_bytes() != data:
        raise IntegrityError(
            f"{where} is not as it was made: its digest or its totals are not its own.",
            "Make it anew with `hubmerge retain --plan`; what it says is never edited by hand.",
        )
    raise_together(IntegrityError, [f"{where}: {problem}" for problem in _problems(plan)])
    return plan


def parse_budget(text: str, total: int, usd_per_gb_month: float) -> int:
    """A budget in bytes: `2GB` (10^9), `2GiB` (2^30), `30%` of `total`, or `5usd` a month.

    Raises UsageError.
    """
    found = _BUDGET.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"--budget {printable(text)[:40]!r} is no budget.",
            "Write 2GB, 500MB, 30% or 5usd (a month).",
        )
    amount, unit = float(found[1]), found[2].lower()
    if unit == "%":
        return int(total * amount / 100)
    if unit == "usd":
        return int(amount / usd_per_gb_month * 10**9)
    prefix = unit.removesuffix("b")
    step = 1024 if prefix.endswith("i") else 1000
    return int(amount * step ** _POWERS[prefix.removesuffix("i")])


def _canonical(said: dict[str, Any]) -> bytes:
    body = json.dumps(said, sort_keys=True, allow_nan=False).encode()
    sealed = {**said, "digest": hashlib.sha256(body).hexdigest()}
    return (json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _problems(plan: Plan) -> Iterator[str]:
    """Whatever would make a plan delete what no plan of ours does."""
    for one in plan.verdicts:
        try:
            check_repo_id(one.repo)
            check_revision(one.name)
        except UsageError as error:
            yield error.message
            continue
        if not is_sha(one.sha) or not all(_CONTENT.fullmatch(sha) for sha in one.contents):
            yield f"{one.label} has no commit or no SHA of a content."
        if not one.keep and (step_of(one.name) is None or one.name == "main"):
            yield f"{one.label} is no step, and only steps are dropped."
