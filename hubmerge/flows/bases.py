"""From an expert to the base it was trained from."""

from __future__ import annotations

from hubmerge.errors import UsageError
from hubmerge.flows.sources import Opened, open_ref
from hubmerge.hub.client import Hub
from hubmerge.manifest import Source
from hubmerge.refs import ModelRef, parse_ref


def located(base: Source) -> ModelRef:
    """Where a manifest's base is to be found: at its commit, or in a folder that must be here."""
    named = parse_ref(base.name)
    if named.path is None:
        return ModelRef(repo_id=named.repo_id, revision=base.sha)
    if not named.path.is_dir():
        raise UsageError(
            f"The experts' base is the folder {base.name}, and it is not here.",
            "Name it with --base.",
        )
    return named


def base_of(hub: Hub, model: Opened) -> Opened | None:
    """The base that a model's manifest names; None for a model that names none."""
    return open_ref(hub, located(model.manifest.base)) if model.manifest else None
