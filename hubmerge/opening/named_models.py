"""Pin and open all models that a user names; what is wrong with any of them is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hubmerge.errors import Failures
from hubmerge.hub.client import Hub
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.references import open_pinned, pin
from hubmerge.refs import ModelRef


def pin_all(hub: Hub, refs: Sequence[ModelRef], failures: Failures) -> list[PinnedModel | None]:
    """Pin every reference, None for one that fails, as `pin`."""
    return [failures.run(partial(pin, hub, ref)) for ref in refs]


def open_all(
    hub: Hub, pinned: Sequence[PinnedModel | None], failures: Failures
) -> list[OpenedModel | None]:
    """Open every model, as `open_pinned`; None for None, and for one that fails.

    After any failure, also an earlier one, only local folders are opened: weights are not fetched
    for what cannot be done.
    """
    opened: list[OpenedModel | None] = []
    for model in pinned:
        if model is None or (failures.errors and not model.revision.ref.is_local):
            opened.append(None)
        else:
            opened.append(failures.run(partial(open_pinned, hub, model)))
    return opened
