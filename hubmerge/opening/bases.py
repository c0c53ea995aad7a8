"""From experts to their base, as their manifests or their own configurations name it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hubmerge.errors import IntegrityError, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import resolve
from hubmerge.manifest import Source
from hubmerge.opening.opened_model import Opened, Pinned
from hubmerge.opening.references import adapter_config, mixture_config, open_ref
from hubmerge.refs import ModelRef, check_repo_id, check_revision, parse_ref
from hubmerge.weights.adapter_config import named_base
from hubmerge.weights.header import shown
from hubmerge.weights.moe_config import CONFIG, read_moe_config

_ONE = "Only experts of one base can be merged."


@dataclass(frozen=True)
class Claim:
    """The base that one expert, by its label, says it was trained from."""

    label: str
    base: ModelRef

    @property
    def place(self) -> str:
        """Where that base is, whatever its revision."""
        return str(self.base.path.resolve()) if self.base.path else str(self.base.repo_id)


def common_base(hub: Hub, pinned: Sequence[Pinned]) -> ModelRef:
    """The base of all experts: a manifest names it for good, their own config without one.

    No weights are fetched. Raises UsageError where an expert is silent, IntegrityError where two
    disagree.
    """
    sealed = [(one.revision.label, one.manifest.base) for one in pinned if one.manifest]
    told = {one.revision.label: _claim(hub, one) for one in pinned if one.manifest is None}
    silent = [label for label, claim in told.items() if claim is None]
    if silent:
        raise UsageError(
            f"{', '.join(silent)} does not say which base it was fine-tuned from.",
            "Name it with --base owner/name.",
        )
    _agree_by_digest(sealed)
    claims = [claim for claim in told.values() if claim is not None]
    if sealed:
        claims.append(Claim(sealed[0][0], _located(sealed[0][1])))
    _agree_by_name(hub, claims)
    # The manifest's is the last; of the others, one that says the revision says more.
    return max(reversed(claims), key=lambda claim: claim.base.revision is not None).base


def base_of(hub: Hub, model: Opened) -> Opened | None:
    """The base of one model; None for whole weights that name none.

    Raises UsageError for an adapter or a mixture that names none, as it is nothing without, and
    IntegrityError where other weights lie there now.
    """
    if model.manifest is None and model.checkpoint.kind == "full":
        return None
    base = open_ref(hub, common_base(hub, [Pinned(model.revision, model.manifest)]))
    if model.manifest and model.manifest.base.digest != base.digest:
        raise IntegrityError(
            f"{model.revision.label} was fine-tuned from other weights than "
            f"{base.revision.label} holds now.",
            "Put the base back that it was trained from.",
        )
    _check_mixture(model, base)
    return base


def _check_mixture(model: Opened, base: Opened) -> None:
    """What names a mixture's base beside its manifest must name the same."""
    if not model.checkpoint.is_moe:
        return
    if read_moe_config(model.folder).base_digest != base.digest:
        raise IntegrityError(
            f"{CONFIG} of {model.revision.label} is for another base than "
            f"{base.revision.label} holds.",
            "Fetch or make the mixture anew.",
        )


def _located(base: Source) -> ModelRef:
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


def _agree_by_digest(sealed: Sequence[tuple[str, Source]]) -> None:
    if len({base.digest for _, base in sealed}) > 1:
        _disagree((label, f"{base.label} ({base.sha[:12]})") for label, base in sealed)


def _agree_by_name(hub: Hub, claims: Sequence[Claim]) -> None:
    """Adapters seldom say the revision; where several do, they must mean one commit."""
    exact = {claim.base for claim in claims if claim.base.repo_id and claim.base.revision}
    apart = len({claim.place for claim in claims}) > 1
    if apart or (len(exact) > 1 and len({resolve(hub, base).sha for base in exact}) > 1):
        _disagree((claim.label, str(claim.base)) for claim in claims)


def _disagree(said: Iterable[tuple[str, str]]) -> None:
    each = ", ".join(f"{label} from {base}" for label, base in said)
    raise IntegrityError(f"The experts were fine-tuned from different bases: {each}.", _ONE)


def _claim(hub: Hub, pinned: Pinned) -> Claim | None:
    """What its own configuration names; None where there is none, or it is silent."""
    label, (name, revision) = pinned.revision.label, _named(hub, pinned)
    if name is None:
        return None
    try:
        if pinned.revision.ref.is_local:
            base = parse_ref(name)
            return Claim(label, base if base.is_local else _on_hub(name, revision))
        return Claim(label, _on_hub(name, revision))
    except UsageError as error:
        # A repository may not choose which of our folders is read.
        raise UsageError(
            f"{label} names its base as {shown(name)!r}, which is no repository to be had.",
            "Name it with --base owner/name.",
        ) from error


def _named(hub: Hub, pinned: Pinned) -> tuple[str | None, str | None]:
    """The base and its revision as an adapter's or a mixture's configuration says them."""
    data = adapter_config(hub, pinned)
    if data is not None:
        return named_base(data, f"adapter_config.json of {pinned.revision.label}")
    mixture = mixture_config(hub, pinned)
    return (mixture.base_model, mixture.base_revision) if mixture else (None, None)


def _on_hub(name: str, revision: str | None) -> ModelRef:
    return ModelRef(
        repo_id=check_repo_id(name), revision=check_revision(revision) if revision else None
    )
