"""Check whether names still resolve to the commits that they were pinned to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hubmerge.errors import IntegrityError, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import resolve
from hubmerge.lock import Pin
from hubmerge.refs import ModelRef

_OFFLINE_NOTE = (
    "HF_HUB_OFFLINE is set, so whether the pinned names have moved was not checked; their commits "
    "are taken from the cache."
)


@dataclass(frozen=True)
class PinStatus:
    """A pinned name: the commit it resolves to now, and whether the pinned commit still exists."""

    name: str
    sha: str
    current_sha: str | None
    exists: bool

    @property
    def drift(self) -> str | None:
        """What has changed since the pin, with both commits; None for no change."""
        if self.current_sha == self.sha:
            return None
        now = f"now resolves to {self.current_sha}" if self.current_sha else "no longer resolves"
        gone = "" if self.exists else ", and the pinned commit is gone"
        return f"{self.name} is pinned to {self.sha} and {now}{gone}."


def check_pin(hub: Hub, name: str, ref: ModelRef, sha: str) -> PinStatus:
    """Resolve a pinned name again; a moved tag or a missing repository is not an error here."""
    now = _resolve_or_none(hub, ref)
    # A tag may have the name of a commit, so the SHA is resolved and compared as well.
    exists = now == sha or _resolve_or_none(hub, ModelRef(ref.repo_id, revision=sha)) == sha
    return PinStatus(name, sha, now, exists)


def check_drift(hub: Hub, pins: Iterable[Pin], strict: bool) -> tuple[str, ...]:
    """What has changed since the pins were made, as notes.

    Raises IntegrityError, for all pins at once, if a pinned commit no longer exists; if `strict`,
    for any change. Offline, the pinned commits are used without this check, unless `strict`.
    """
    if hub.is_offline and not strict:
        return (_OFFLINE_NOTE,)
    statuses = [check_pin(hub, pin.requested, pin.ref, pin.source.sha) for pin in pins]
    drifted = [status for status in dict.fromkeys(statuses) if status.drift]
    refused = [str(status.drift) for status in drifted if strict or not status.exists]
    available = all(status.exists for status in drifted)
    hint = "Leave out --locked to merge the pinned commits" if available else "Restore them"
    raise_together(IntegrityError, refused, f"{hint}, or choose again with `hubmerge select`.")
    return tuple(str(status.drift) for status in drifted)


def _resolve_or_none(hub: Hub, ref: ModelRef) -> str | None:
    try:
        return resolve(hub, ref).sha
    except (NotOnHub, UsageError):  # no commit, or several
        return None
