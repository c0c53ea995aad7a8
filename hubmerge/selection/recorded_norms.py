"""Which checkpoints a policy would fetch only for the norms that their manifests do not have."""

from __future__ import annotations

from hubmerge.byte_sizes import format_bytes
from hubmerge.selection.candidate import Candidate
from hubmerge.selection.pool import Pool

PROXY = "proxy"


def without_norms(pool: Pool) -> list[Candidate]:
    """The candidates whose norm is not recorded; none if a curve is missing, as proxy needs all."""
    candidates = [candidate for steps in pool.candidates for candidate in steps]
    if any(candidate.own_accuracy is None for candidate in candidates):
        return []
    return [candidate for candidate in candidates if candidate.norms is None]


def proxy_note(pool: Pool, is_requested: bool) -> str | None:
    """A sentence on what policy proxy fetches, or that it is skipped; None if it fetches nothing.

    The size is that of the last step of the same expert, which every selection fetches.
    """
    missing = without_norms(pool)
    if not missing:
        return None
    last_by_task = {steps[-1].source.task: steps[-1] for steps in pool.candidates}
    sizes = {
        task: sum(tensor.nbytes for tensor in pool.open(last).index.values())
        for task, last in last_by_task.items()
    }
    size = format_bytes(sum(sizes[candidate.source.task] for candidate in missing))
    what = f"{len(missing)} checkpoints, about {size}: their hubmerge.json has no norms"
    if is_requested:
        return f"Policy {PROXY} fetches {what}."
    return f"Policy {PROXY} is skipped, as it would fetch {what}. Ask for it with --policy {PROXY}."
