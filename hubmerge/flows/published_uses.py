"""What models on the Hub need of the repositories that `hubmerge retain` plans for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hubmerge.errors import (
    CheckpointError,
    HubError,
    HubUnreachable,
    IntegrityError,
    NoAccess,
    UsageError,
)
from hubmerge.hub.client import Hub
from hubmerge.hub.derived_models import find_derived
from hubmerge.hub.fetch import list_files, read_file
from hubmerge.hub.step_names import list_refs
from hubmerge.lock import LOCK_FILE, Lock
from hubmerge.lock_file import parse_lock
from hubmerge.manifest import MANIFEST_JSON, Manifest, parse_manifest
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, printable
from hubmerge.retention.choice import required_commits
from hubmerge.source import Source

BLIND_SPOT = (
    "Locks and merges on the Hub are looked for by the cards that name these repositories. Private "
    "ones of other people, and locks that were never published, cannot be seen."
)


@dataclass(frozen=True)
class PublishedUses:
    """The commits that models on the Hub need, and the models that could not be read.

    `commits` maps the name of a repository to commit -> role, such as "expert of o/merge". `unseen`
    has a sentence for each model that may need more.
    """

    commits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()

    @property
    def roles(self) -> dict[str, str]:
        """The role of each commit, of any repository."""
        return {sha: role for roles in self.commits.values() for sha, role in roles.items()}


def find_published_uses(hub: Hub, repos: Iterable[str], progress: Progress) -> PublishedUses:
    """Read the locks and manifests of all models whose cards name one of the repositories.

    Every tag and branch of such a model is read. Raises HubError if the Hub cannot list models: a
    search that did not happen protects nothing.
    """
    commits: dict[str, dict[str, str]] = {}
    unseen: list[str] = []
    models: set[str] = set()
    for repo in dict.fromkeys(repos):
        derived = find_derived(hub, repo)
        models |= set(derived.names)
        if derived.is_cut:
            unseen.append(f"More models name {repo} than the Hub lists at once; not all were read.")
    for done, model in enumerate(sorted(models)):
        progress(f"reading {model}", done, len(models))
        try:
            revisions = _revisions(hub, model)
        except HubError as error:
            unseen.append(f"{model} {_reason(error)}.")
            continue
        for revision in revisions:
            try:
                for name, sha, role in _needed(hub, revision):
                    commits.setdefault(name, {}).setdefault(sha, f"{role} of {model}")
            except (HubError, IntegrityError, CheckpointError, UsageError) as error:
                unseen.append(f"{revision.label} {_reason(error)}.")
    return PublishedUses(commits, tuple(dict.fromkeys(unseen)))


def _revisions(hub: Hub, model: str) -> list[Revision]:
    """Each commit that a tag or branch of a model points to, once."""
    refs = list_refs(hub, model)
    names = {sha: name for name, sha in {**refs.tags, **refs.branches}.items()}
    return [Revision(ModelRef(model, revision=name), sha) for sha, name in names.items()]


def _needed(hub: Hub, revision: Revision) -> Iterator[tuple[str, str, str]]:
    """Yield repository, commit and role of everything that one revision needs."""
    files = list_files(hub, revision)
    if MANIFEST_JSON in files and (data := read_file(hub, revision, MANIFEST_JSON)):
        yield from _needed_by_manifest(parse_manifest(data, revision.label))
    if LOCK_FILE in files and (data := read_file(hub, revision, LOCK_FILE)):
        yield from _needed_by_lock(parse_lock(data, f"{LOCK_FILE} of {revision.label}"))


def _needed_by_manifest(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    for expert in manifest.experts:
        yield expert.name, expert.sha, "expert"
        if expert.last_sha:
            yield expert.name, expert.last_sha, "last step"
    yield manifest.base.name, manifest.base.sha, "base"


def _needed_by_lock(lock: Lock) -> Iterator[tuple[str, str, str]]:
    names = {sha: source.name for source in _sources(lock) for sha in _commits(source)}
    for sha, role in required_commits(lock).items():
        yield names[sha], sha, f"{role} in the lock"


def _sources(lock: Lock) -> Iterator[Source]:
    yield from (expert for pick in lock.picks for expert in pick.experts)
    yield from (pin.source for pin in (*lock.experts, lock.base))


def _commits(source: Source) -> Iterator[str]:
    yield source.sha
    if source.last_sha:
        yield source.last_sha


def _reason(error: Exception) -> str:
    if isinstance(error, NoAccess):
        return "is gated or private, and may not be read"
    if isinstance(error, HubUnreachable):
        return "could not be reached"
    return f"could not be read ({printable(str(error))[:160].rstrip('.')})"
