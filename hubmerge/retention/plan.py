"""plan.json: which refs would be kept and dropped, and why; a plan alone changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hubmerge.byte_sizes import parse_bytes
from hubmerge.errors import IntegrityError, UsageError, raise_together
from hubmerge.refs import check_repo_id, check_revision, is_sha, printable, step_of
from hubmerge.retention.choice import Verdict, stored_bytes
from hubmerge.retention.evidence import Regret
from hubmerge.typed_json import validate_json
from hubmerge.validation_errors import first_problem

FORMAT = 1
# An assumption, stated wherever costs are shown: public storage beyond what an account includes,
# from $12 per TB and month (huggingface.co/changelog, 26 February 2026).
USD_PER_GB_MONTH = 0.012

_MAX_BYTES = 200_000_000
_BUDGET_PATTERN = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(%|usd|[kmgt]?i?b)", re.IGNORECASE)
_CONTENT_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RetentionPlan:
    """A decision on every tag and branch of some repositories.

    `locks` are the SHA-256 of the locks that were taken into account; `budget` is as typed.
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
        return tuple(verdict for verdict in self.verdicts if verdict.keep)

    @property
    def dropped(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if not verdict.keep)

    @property
    def repos(self) -> tuple[str, ...]:
        return tuple(sorted({verdict.repo for verdict in self.verdicts}))

    @property
    def totals(self) -> dict[str, float]:
        """Bytes of the kept refs, bytes that only dropped refs hold, and their cost per month."""
        kept = stored_bytes(self.kept)
        dropped = stored_bytes(self.verdicts) - kept
        return {
            "bytes_kept": kept,
            "bytes_dropped": dropped,
            "usd_per_month_kept": self.cost(kept),
            "usd_per_month_dropped": self.cost(dropped),
        }

    def cost(self, size: int) -> float:
        """Return the cost of `size` bytes in US dollars per month."""
        return round(size / 10**9 * self.usd_per_gb_month, 6)

    def to_bytes(self) -> bytes:
        """Return canonical JSON with a digest: equal plans give equal bytes."""
        fields = dataclasses.asdict(self)
        fields["verdicts"] = [{**dataclasses.asdict(v), "bytes": v.size} for v in self.verdicts]
        fields["regrets"] = [{**dataclasses.asdict(r), "regret": r.value} for r in self.regrets]
        return _to_canonical_json({**fields, "totals": self.totals})


def parse_plan(data: bytes, where: str) -> RetentionPlan:
    """Read a plan; raises IntegrityError if it was edited or could not have been made here.

    `where` names the file in messages.
    """
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        fields = json.loads(data)
        if fields.get("format") != FORMAT:
            raise ValueError(f"unknown format; this hubmerge reads format {FORMAT}")
        plan = validate_json(RetentionPlan, data)
    except ValidationError as error:
        reason = first_problem(error)
        raise IntegrityError(f"{where} is not a plan: {printable(reason)[:200]}.") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{where} is not a plan: {printable(str(error))[:200]}.") from error
    if plan.to_bytes() != data:
        raise IntegrityError(
            f"{where} was edited: its digest or its totals do not match its content.",
            "Make a new plan with `hubmerge retain --plan`; do not edit a plan by hand.",
        )
    raise_together(IntegrityError, [f"{where}: {problem}" for problem in _find_problems(plan)])
    return plan


def parse_budget(text: str, total: int, usd_per_gb_month: float) -> int:
    """Parse a budget to bytes: `2GB` (10^9), `2GiB` (2^30), `30%` of `total`, or `5usd` a month.

    Raises UsageError for anything else.
    """
    match = _BUDGET_PATTERN.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--budget {printable(text)[:40]!r} is not a storage budget.",
            "Write 2GB, 500MB, 30% or 5usd (per month).",
        )
    amount, unit = float(match[1]), match[2].lower()
    if unit == "%":
        return int(total * amount / 100)
    if unit == "usd":
        return int(amount / usd_per_gb_month * 10**9)
    return parse_bytes(match[0], "--budget")


def _to_canonical_json(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields, sort_keys=True, allow_nan=False).encode()
    with_digest = {**fields, "digest": hashlib.sha256(body).hexdigest()}
    return (json.dumps(with_digest, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _find_problems(plan: RetentionPlan) -> Iterator[str]:
    """Yield what would make the plan delete something that `hubmerge retain` never drops."""
    for verdict in plan.verdicts:
        try:
            check_repo_id(verdict.repo)
            check_revision(verdict.name)
        except UsageError as error:
            yield error.message
            continue
        has_shas = all(_CONTENT_SHA.fullmatch(sha) for sha in verdict.contents)
        if not is_sha(verdict.sha) or not has_shas:
            yield f"{verdict.label} has an invalid commit or content SHA."
        if not verdict.keep and (step_of(verdict.name) is None or verdict.name == "main"):
            yield f"{verdict.label} is not a step, and only steps are dropped."
