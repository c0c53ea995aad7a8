"""hubmerge steps --search: find experts on a Hub, and check which of them fit a base.

Only headers and small files are read, never weights.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from hubmerge.errors import CheckpointError, HubError, HubUnreachable, IntegrityError, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.commit_contents import list_folder
from hubmerge.hub.fetch import read_file
from hubmerge.hub.headers import Shapes, read_shapes
from hubmerge.hub.resolve import list_steps, resolve
from hubmerge.hub.search import ListedModel, Query, search
from hubmerge.manifest import MANIFEST_JSON, Manifest, parse_manifest
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, is_sha, printable
from hubmerge.source import Source
from hubmerge.weights.adapter_config import parse_base_reference
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG, find_config_problems
from hubmerge.weights.header import parse_json_object
from hubmerge.weights.header import summarize_names as named
from hubmerge.weights.moe_config import MOE_CONFIG

Fit = Literal["yes", "likely", "no", "unknown"]
WeightsKind = Literal["full", "adapter", "mixture", "pickle", "none"]
_THREADS = 8


@dataclass(frozen=True)
class FoundModel:
    """A repository that may hold experts of a base, as far as is known without its weights.

    `fits` is "yes" if its manifest or tensor shapes show that it fits the base, "likely" if it
    names the base but shapes were not compared, or "no", or "unknown". `why` is the reason.
    """

    repo_id: str
    sha: str
    kind: WeightsKind
    relation: str | None
    steps: int
    last_step: int | None
    task: str | None
    licence: str | None
    bases: tuple[str, ...]
    fits: Fit = "unknown"
    why: str = "no base was given"


@dataclass(frozen=True)
class SearchBase:
    """The pinned base that experts must fit; its shapes are read on first use."""

    hub: Hub
    revision: Revision

    @property
    def repo_id(self) -> str:
        return str(self.revision.ref.repo_id)

    @cached_property
    def weights(self) -> str | None:
        return list_folder(self.hub, self.repo_id, self.revision.sha, "").weights

    @cached_property
    def shapes(self) -> Shapes | None:
        return read_shapes(self.hub, self.revision)


def find_experts(hub: Hub, query: Query, limit: int, progress: Progress) -> list[FoundModel]:
    """Return the models of a search in the Hub's order; an unreadable one has the reason."""
    base = SearchBase(hub, resolve(hub, query.base)) if query.base else None
    matches, models = search(hub, query, limit), list[FoundModel]()
    with ThreadPoolExecutor(_THREADS) as pool:
        for model in pool.map(lambda listed: _inspect(hub, listed, base), matches):
            models.append(model)
            progress(model.repo_id, len(models), len(matches))
    return models


def _inspect(hub: Hub, listed: ListedModel, base: SearchBase | None) -> FoundModel:
    model = FoundModel(
        repo_id=listed.repo_id,
        sha=listed.sha,
        kind=_weights_kind(listed),
        relation=listed.relation,
        steps=0,
        last_step=None,
        task=None,
        licence=listed.licence,
        bases=listed.bases,
    )
    try:
        steps = list_steps(hub, listed.repo_id)
        model = replace(model, steps=len(steps), last_step=steps[-1].step if steps else None)
        manifest = _read_manifest(hub, listed)
        model = replace(model, task=(manifest.task_name or None) if manifest else None)
        if base is None:
            return model
        fits, why = _fit(hub, listed, model.kind, manifest, base)
    except HubUnreachable:
        raise
    except (HubError, IntegrityError, CheckpointError) as error:
        fits, why = "unknown", printable(error.message)
    return replace(model, fits=fits, why=why)


def _weights_kind(listed: ListedModel) -> WeightsKind:
    """Return the kind of weights by the files on main; the steps may differ."""
    names = set(listed.files)
    if MOE_CONFIG in names:
        return "mixture"
    if {ADAPTER_CONFIG, "adapter_model.safetensors"} <= names:
        return "adapter"
    if any(name.endswith(".safetensors") and "/" not in name for name in names):
        return "full"
    return "pickle" if any(name.endswith(".bin") for name in names) else "none"


def _read_manifest(hub: Hub, listed: ListedModel) -> Manifest | None:
    if MANIFEST_JSON not in listed.files:
        return None
    data = read_file(hub, _revision(listed), MANIFEST_JSON)
    return parse_manifest(data, listed.repo_id) if data else None


def _fit(
    hub: Hub, listed: ListedModel, kind: WeightsKind, manifest: Manifest | None, base: SearchBase
) -> tuple[Fit, str]:
    """Return whether experts of a repository can be merged on the base, and the reason."""
    if kind in ("pickle", "none"):
        return "no", "its weights are pickles" if kind == "pickle" else "no weights on main"
    if kind == "mixture":
        return "no", "it is a mixture of experts; its experts are adapters in its folders"
    if (manifest and manifest.is_merge) or listed.relation == "merge":
        return "no", "it is a merge, not an expert"
    if listed.relation == "quantized":
        return "no", "it is quantised"
    if manifest:
        return _fit_by_manifest(hub, manifest.base, base)
    if kind == "adapter":
        return _fit_by_config(hub, listed, base)
    return _fit_by_shapes(hub, listed, base)


def _fit_by_manifest(hub: Hub, source: Source, base: SearchBase) -> tuple[Fit, str]:
    if source.sha == base.revision.sha:
        return "yes", "its manifest names this commit of the base"
    names_commit = f"its manifest names {source.name} at {source.sha[:12]}"
    if source.is_local or not is_sha(source.sha):
        return "no", f"{names_commit}, a local folder"
    try:
        weights = list_folder(hub, source.name, source.sha, "").weights
    except NotOnHub:
        return "no", f"{names_commit}, which is not on this Hub"
    if weights and weights == base.weights:
        return "yes", f"{names_commit}, with the same weights"
    return "no", f"{names_commit}, with other weights"


def _fit_by_config(hub: Hub, listed: ListedModel, base: SearchBase) -> tuple[Fit, str]:
    where = f"{ADAPTER_CONFIG} of {listed.repo_id}"
    data = read_file(hub, _revision(listed), ADAPTER_CONFIG) or b"{}"
    problems = [why for why, _ in find_config_problems(parse_json_object(data, where), "it")]
    if problems:
        return "no", problems[0].rstrip(".")
    name, revision = parse_base_reference(data, where)
    if name != base.repo_id:
        return "no", f"its {ADAPTER_CONFIG} names {name or 'no base'}"
    if revision and revision != base.revision.ref.revision:
        return "likely", f"its {ADAPTER_CONFIG} names the base at {revision}; shapes not compared"
    return "likely", f"its {ADAPTER_CONFIG} names the base; shapes not compared"


def _fit_by_shapes(hub: Hub, listed: ListedModel, base: SearchBase) -> tuple[Fit, str]:
    names_base = base.repo_id in listed.bases
    reason = "its card names the base" if names_base else "it names no base"
    if listed.bases and not names_base:
        reason = f"its card names {', '.join(listed.bases)}"
    ours, theirs = base.shapes, read_shapes(hub, _revision(listed))
    if ours is None or theirs is None:
        reason = f"{reason}; shapes not compared: too many files"
        return ("likely" if names_base else "unknown"), reason
    if problem := _shape_mismatch(ours, theirs):
        return "no", f"{reason}, but {problem}"
    return ("yes" if names_base else "likely"), f"{reason}; all {len(ours)} tensors have its shapes"


def _shape_mismatch(ours: Shapes, theirs: Shapes) -> str:
    missing, extra = set(ours) - set(theirs), set(theirs) - set(ours)
    if missing or extra:
        parts = [
            f"lacks {named(missing)}" if missing else "",
            f"adds {named(extra)}" if extra else "",
        ]
        return f"it {' and '.join(filter(None, parts))}"
    different = [name for name, shape in ours.items() if theirs[name] != shape]
    return f"it has {named(different)} of another shape" if different else ""


def _revision(listed: ListedModel) -> Revision:
    return Revision(ModelRef(listed.repo_id), listed.sha)
