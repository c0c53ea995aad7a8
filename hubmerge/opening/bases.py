"""Find and open the base of experts, as their manifests or configurations name it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from hubmerge.errors import Failures, IntegrityError, UsageError, raise_together
from hubmerge.front_matter import card_data
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import resolve
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.references import (
    fetch_adapter_config,
    fetch_card,
    fetch_moe_config,
    open_ref,
)
from hubmerge.refs import ModelRef, check_repo_id, check_revision, parse_ref
from hubmerge.source import Source
from hubmerge.weights.adapter_config import parse_base_reference
from hubmerge.weights.distance import STRANGER, cosine
from hubmerge.weights.header import safe_name
from hubmerge.weights.moe_config import MOE_CONFIG, read_moe_config

# Names of quantised copies, such as unsloth/llama-3-8b-bnb-4bit; the group is the original's name.
_QUANTISED = re.compile(
    r"(.+?)(?:[-_.](?:unsloth|quantized))?(?:[-_.](?:bnb|nf4|int4|int8|fp4|fp8|[48]-?bit|gptq|awq"
    r"|gguf|exl2|hqq|w4a16|w8a8|w8a16))+",
    re.IGNORECASE,
)
_HINT = "Only experts of one base can be merged."


@dataclass(frozen=True)
class NamedBase:
    """The base that the configuration of one model names, with the label of the model."""

    label: str
    base: ModelRef

    @property
    def location(self) -> str:
        """The repository or folder of the base, without revision."""
        return str(self.base.path.resolve()) if self.base.path else str(self.base.repo_id)


def common_base(hub: Hub, pinned: Sequence[PinnedModel]) -> ModelRef:
    """The base of all experts: from their manifests, or from their configs if they have none.

    No weights are fetched. Raises UsageError for all experts that name no base or one that cannot
    be used, IntegrityError if two name different ones.
    """
    from_manifests = [(m.revision.label, m.manifest.base) for m in pinned if m.manifest]
    failures = Failures()
    named = [
        failures.run(partial(_named_base, hub, model)) for model in pinned if model.manifest is None
    ]
    bases = [base for base in named if base is not None]
    failures.run(lambda: _check_not_quantised(bases))
    failures.raise_all()
    _check_same_digest(from_manifests)
    if from_manifests:
        label, source = from_manifests[0]
        bases.append(NamedBase(label, _base_ref(source)))
    _check_same_name(hub, bases)
    # Prefer the one of the manifest, which is the last, then one that names the revision.
    return max(reversed(bases), key=lambda named: named.base.revision is not None).base


def original_of_quantised(name: str) -> str | None:
    """The original's name of a quantised copy, such as unsloth/llama-3-8b-bnb-4bit, by its name."""
    match = _QUANTISED.fullmatch(name)
    return match[1] if match else None


def _check_not_quantised(bases: Iterable[NamedBase]) -> None:
    """Raise UsageError for bases that are quantised copies of others, by their names."""
    problems, examples = [], []
    for named in bases:
        name = str(named.base.repo_id or "")
        if original := original_of_quantised(name):
            problems.append(f"{named.label} was trained on {name}, a quantised copy of its base.")
            examples.append(original)
    hint = f"Name the original with --base, perhaps --base {examples[0]}." if examples else ""
    raise_together(UsageError, problems, hint)


def open_base(hub: Hub, model: OpenedModel) -> OpenedModel | None:
    """Open the base of one model; None for full weights without a manifest.

    Raises UsageError for an adapter or a mixture of experts that names no base, and IntegrityError
    if the base has other weights now.
    """
    if model.manifest is None and model.checkpoint.kind == "full":
        return None
    base = open_ref(hub, common_base(hub, [PinnedModel(model.revision, model.manifest)]))
    if model.manifest and model.manifest.base.digest != base.digest:
        raise IntegrityError(
            f"{model.revision.label} was fine-tuned from other weights than "
            f"{base.revision.label} holds now.",
            "Restore the base that it was trained from.",
        )
    _check_moe_base(model, base)
    return base


def _check_moe_base(model: OpenedModel, base: OpenedModel) -> None:
    """Raise IntegrityError if the configuration of a mixture of experts names another base."""
    if not model.checkpoint.is_moe:
        return
    if read_moe_config(model.folder).base_digest != base.digest:
        raise IntegrityError(
            f"{MOE_CONFIG} of {model.revision.label} is for another base than "
            f"{base.revision.label} holds.",
            "Fetch or make the mixture again.",
        )


def _base_ref(base: Source) -> ModelRef:
    """The base of a manifest: at its commit, or in a local folder that must exist."""
    ref = parse_ref(base.name)
    if ref.path is None:
        return ModelRef(repo_id=ref.repo_id, revision=base.sha)
    if not ref.path.is_dir():
        raise UsageError(
            f"The base of the experts is the folder {base.name}, which does not exist.",
            "Name it with --base.",
        )
    return ref


def _check_same_digest(bases: Sequence[tuple[str, Source]]) -> None:
    if len({base.digest for _, base in bases}) > 1:
        _raise_different_bases((label, f"{base.label} ({base.sha[:12]})") for label, base in bases)


def _check_same_name(hub: Hub, bases: Sequence[NamedBase]) -> None:
    """Raise IntegrityError for different bases; adapters seldom name the revision of theirs."""
    refs = {named.base for named in bases if named.base.repo_id and named.base.revision}
    differ = len({named.location for named in bases}) > 1
    if differ or (len(refs) > 1 and len({resolve(hub, ref).sha for ref in refs}) > 1):
        _raise_different_bases((named.label, str(named.base)) for named in bases)


def _raise_different_bases(bases: Iterable[tuple[str, str]]) -> None:
    listed = ", ".join(f"{label} from {base}" for label, base in bases)
    raise IntegrityError(f"The experts were fine-tuned from different bases: {listed}.", _HINT)


def _named_base(hub: Hub, pinned: PinnedModel) -> NamedBase:
    """The base that a model's configuration names; raises UsageError if it names none."""
    label, (name, revision) = pinned.revision.label, _base_in_config(hub, pinned)
    if name is None:
        raise UsageError(
            f"{label} does not name the base it was fine-tuned from.",
            "Name it with --base owner/name.",
        )
    try:
        if pinned.revision.ref.is_local:
            base = parse_ref(name)
            return NamedBase(label, base if base.is_local else _hub_ref(name, revision))
        return NamedBase(label, _hub_ref(name, revision))
    except UsageError as error:
        # A repository must not choose which local folder is read.
        raise UsageError(
            f"{label} names its base as {safe_name(name)!r}, which is not a repository.",
            "Name it with --base owner/name.",
        ) from error


def _base_in_config(hub: Hub, pinned: PinnedModel) -> tuple[str | None, str | None]:
    """The base and its revision in the configuration of an adapter or a mixture of experts.

    Without one, or if it names none, the base is that of the card.
    """
    data = fetch_adapter_config(hub, pinned)
    if data is not None:
        named = parse_base_reference(data, f"adapter_config.json of {pinned.revision.label}")
        return named if named[0] else (_base_in_card(hub, pinned), None)
    config = fetch_moe_config(hub, pinned)
    if config:
        return config.base_model, config.base_revision
    return _base_in_card(hub, pinned), None


def _base_in_card(hub: Hub, pinned: PinnedModel) -> str | None:
    """The one `base_model` on a card, unless the card is that of a merge or a quantised copy."""
    card = card_data(fetch_card(hub, pinned).decode("utf-8", "replace"))
    if card.get("base_model_relation") in ("merge", "quantized"):
        return None
    named = card.get("base_model")
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return names[0] if len(names) == 1 and isinstance(names[0], str) and names[0] else None


def check_origin(
    base: OpenedModel, experts: Sequence[OpenedModel], is_named: bool
) -> tuple[str, ...]:
    """Compare a few weights of full experts without a manifest with their base.

    Returns notes on those that have nothing in common with a base that the user named, and raises
    IntegrityError if the base was only found on their cards.
    """
    problems = []
    for model in experts:
        if model.manifest or model.checkpoint.kind != "full" or base.checkpoint.kind != "full":
            continue
        value = cosine(base.checkpoint, model.checkpoint)
        if value is not None and value < STRANGER:
            problems.append(
                f"{model.revision.label} has little in common with {base.revision.label} "
                f"(cosine {value:.2f}): was it fine-tuned from another base?"
            )
    if problems and not is_named:
        raise_together(IntegrityError, problems, "Name the base with --base.")
    return tuple(problems)


def _hub_ref(name: str, revision: str | None) -> ModelRef:
    return ModelRef(
        repo_id=check_repo_id(name), revision=check_revision(revision) if revision else None
    )
