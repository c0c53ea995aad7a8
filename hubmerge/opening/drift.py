"""Whether names still mean the commits that they were pinned to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hubmerge.errors import IntegrityError, NotOnHub, UsageError, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import resolve
from hubmerge.lock import Pin
from hubmerge.refs import ModelRef


@dataclass(frozen=True)
class Standing:
    """A pinned name today: the commit it means `now`, if any; whether its own is still `there`."""

    name: str
    sha: str
    now: str | None
    there: bool

    @property
    def drift(self) -> str | None:
        """What has changed since, with both commits; None for nothing."""
        if self.now == self.sha:
            return None
        means = f"now means {self.now}" if self.now else "now means nothing"
        held = "" if self.there else ", and the pinned commit is gone"
        return f"{self.name} is pinned to {self.sha} and {means}{held}."


def stand(hub: Hub, name: str, ref: ModelRef, sha: str) -> Standing:
    """How a pinned name stands; a tag that moved and a repository that went are no error here."""
    now = _means(hub, ref)
    # A tag may be called like a commit, so what the commit's name means counts, not that it is one.
    there = now == sha or _means(hub, ModelRef(ref.repo_id, revision=sha)) == sha
    return Standing(name, sha, now, there)


def check_drift(hub: Hub, pins: Iterable[Pin], strict: bool) -> tuple[str, ...]:
    """What has changed since the pins were made, as notes.

    Raises IntegrityError, for all pins at once, where a pinned commit cannot be had any more; if
    `strict`, for any change.
    """
    standings = [stand(hub, pin.requested, pin.ref, pin.source.sha) for pin in pins]
    drifted = [one for one in dict.fromkeys(standings) if one.drift]
    refused = [str(one.drift) for one in drifted if strict or not one.there]
    to_be_had = all(one.there for one in drifted)
    way_out = "Leave out --locked to merge what is pinned" if to_be_had else "Put back what is gone"
    raise_together(IntegrityError, refused, f"{way_out}, or choose anew with `hubmerge select`.")
    return tuple(str(one.drift) for one in drifted)


def _means(hub: Hub, ref: ModelRef) -> str | None:
    try:
        return resolve(hub, ref).sha
    except (NotOnHub, UsageError):  # nothing, or several things
        return None
