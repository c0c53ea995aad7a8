"""hubmerge steps --search: candidate experts over a Hub, and which of them fit a base.

Headers and small files are read, weights never.
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
from hubmerge.hub.search import Listed, Query, search
from hubmerge.manifest import NAME, Manifest, Source, parse_manifest
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, is_sha, printable
from hubmerge.weights.adapter_config import named_base
from hubmerge.weights.adapter_config_fields import FILE, problems_of
from hubmerge.weights.header import listed as named
from hubmerge.weights.header import load_object
from hubmerge.weights.moe_config import CONFIG

Fit = Literal["yes", "likely", "no", "unknown"]
Kind = Literal["full", "adapter", "mixture", "pickle", "none"]
_AT_ONCE = 8


@dataclass(frozen=True)
class Candidate:
    """A repository that may hold experts of a base, by what is told without its weights.

    `fits` the base: yes, where its manifest or its tensors' shapes say so; likely, where it names
    the base and shapes were not compared; no; or unknown. `why` says so in words.
    """

    repo_id: str
    sha: str
    kind: Kind
    relation: str | None
    steps: int
    last_step: int | None
    task: str | None
    licence: str | None
    bases: tuple[str, ...]
    fits: Fit = "unknown"
    why: str = "no base was asked for"


@dataclass(frozen=True)
class Base:
    """The base that experts are sought for, pinned; its shapes are read once, if at all."""

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


def find_experts(hub: Hub, query: Query, limit: int, progress: Progress) -> list[Candidate]:
    """The candidates of a search in the Hub's order; one that cannot be read says why."""
    base = Base(hub, resolve(hub, query.base)) if query.base else None
    found, candidates = search(hub, query, limit), list[Candidate]()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for one in pool.map(lambda listed: _candidate(hub, listed, base), found):
            candidates.append(one)
            progress(one.repo_id, len(candidates), len(found))
    return candidates


def _candidate(hub: Hub, listed: Listed, base: Base | None) -> Candidate:
    seen = Candidate(
        repo_id=listed.repo_id,
        sha=listed.sha,
        kind=_kind(listed),
        relation=listed.relation,
        steps=0,
        last_step=None,
        task=None,
        licence=listed.licence,
        bases=listed.bases,
    )
    try:
        steps = list_steps(hub, listed.repo_id)
        seen = replace(seen, steps=len(steps), last_step=steps[-1].step if steps else None)
        manifest = _manifest(hub, listed)
        seen = replace(seen, task=(manifest.task_name or None) if manifest else None)
        if base is None:
            return seen
        fits, why = _fit(hub, listed, seen.kind, manifest, base)
    except HubUnreachable:
        raise
    except (HubError, IntegrityError, CheckpointError) as error:
        fits, why = "unknown", printable(error.message)
    return replace(seen, fits=fits, why=why)


def _kind(listed: Listed) -> Kind:
    """By its files on main; the steps may hold something else, which merging would say."""
    names = set(listed.files)
    if CONFIG in names:
        return "mixture"
    if {FILE, "adapter_model.safetensors"} <= names:
        return "adapter"
    if any(name.endswith(".safetensors") and "/" not in name for name in names):
        return "full"
    return "pickle" if any(name.endswith(".bin") for name in names) else "none"


def _manifest(hub: Hub, listed: Listed) -> Manifest | None:
    if NAME not in listed.files:
        return None
    data = read_file(hub, _at(listed), NAME)
    return parse_manifest(data, listed.repo_id) if data else None


def _fit(
    hub: Hub, listed: Listed, kind: Kind, manifest: Manifest | None, base: Base
) -> tuple[Fit, str]:
    """Whether experts of a repository can be merged on the base, and why."""
    if kind in ("pickle", "none"):
        return "no", "its weights are pickles" if kind == "pickle" else "no weights on main"
    if kind == "mixture":
        return "no", "it is a mixture, no expert; its experts are adapters in its folders"
    if (manifest and manifest.is_merge) or listed.relation == "merge":
        return "no", "it is a merge, no expert"
    if listed.relation == "quantized":
        return "no", "it is quantised"
    if manifest:
        return _by_manifest(hub, manifest.base, base)
    if kind == "adapter":
        return _by_config(hub, listed, base)
    return _by_shapes(hub, listed, base)


def _by_manifest(hub: Hub, source: Source, base: Base) -> tuple[Fit, str]:
    if source.sha == base.revision.sha:
        return "yes", "its manifest names this commit of the base"
    named_so = f"its manifest names {source.name} at {source.sha[:12]}"
    if source.is_local or not is_sha(source.sha):
        return "no", f"{named_so}, a folder elsewhere"
    try:
        weights = list_folder(hub, source.name, source.sha, "").weights
    except NotOnHub:
        return "no", f"{named_so}, which is not here"
    if weights and weights == base.weights:
        return "yes", f"{named_so}, with the same weights"
    return "no", f"{named_so}, with other weights"


def _by_config(hub: Hub, listed: Listed, base: Base) -> tuple[Fit, str]:
    where = f"{FILE} of {listed.repo_id}"
    data = read_file(hub, _at(listed), FILE) or b"{}"
    problems = [why for why, _ in problems_of(load_object(data, where), "it")]
    if problems:
        return "no", problems[0].rstrip(".")
    name, revision = named_base(data, where)
    if name != base.repo_id:
        return "no", f"its {FILE} names {name or 'no base'}"
    if revision and revision != base.revision.ref.revision:
        return "likely", f"its {FILE} names the base at {revision}; shapes not compared"
    return "likely", f"its {FILE} names the base; shapes not compared"


def _by_shapes(hub: Hub, listed: Listed, base: Base) -> tuple[Fit, str]:
    says = base.repo_id in listed.bases
    told = "its card names the base" if says else "it names no base"
    if listed.bases and not says:
        told = f"its card names {', '.join(listed.bases)}"
    ours, theirs = base.shapes, read_shapes(hub, _at(listed))
    if ours is None or theirs is None:
        return ("likely" if says else "unknown"), f"{told}; shapes not compared: too many files"
    if problem := _misfit(ours, theirs):
        return "no", f"{told}, but {problem}"
    return ("yes" if says else "likely"), f"{told}; all {len(ours)} tensors have its shapes"


def _misfit(ours: Shapes, theirs: Shapes) -> str:
    lacks, extra = set(ours) - set(theirs), set(theirs) - set(ours)
    if lacks or extra:
        parts = [f"lacks {named(lacks)}" if lacks else "", f"adds {named(extra)}" if extra else ""]
        return f"it {' and '.join(filter(None, parts))}"
    other = [name for name, shape in ours.items() if theirs[name] != shape]
    return f"it has {named(other)} of another shape" if other else ""


def _at(listed: Listed) -> Revision:
    return Revision(ModelRef(listed.repo_id), listed.sha)
