"""hubmerge retain: plan which step revisions to keep, and delete the others by that plan."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import IntegrityError, NotOnHub, UnknownName, raise_together
from hubmerge.flows.published_uses import PublishedUses, find_published_uses
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import HubFile, list_files
from hubmerge.hub.removal import delete_ref, list_all_refs, purge
from hubmerge.hub.step_names import Refs, list_refs
from hubmerge.kinds import MOE
from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock, read_lock_bytes
from hubmerge.manifest import MANIFEST_JSON, Manifest
from hubmerge.merging.registry import METHODS
from hubmerge.opening.references import pin_revision
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, step_of
from hubmerge.retention.choice import (
    RefInfo,
    RefKind,
    Verdict,
    choose,
    required_commits,
    stored_bytes,
)
from hubmerge.retention.evidence import compute_regrets, group_comparable
from hubmerge.retention.plan import USD_PER_GB_MONTH, RetentionPlan, parse_budget
from hubmerge.trials import TrialLog

LOCKS = "locks"
_HINT = "Nothing was deleted. Make a new plan with `hubmerge retain --plan`."


@dataclass(frozen=True)
class RetainRequest:
    """Repositories, budget as typed, targets (merge methods), and locks besides those in home."""

    repos: tuple[str, ...]
    budget: str | None = None
    targets: tuple[str, ...] = ()
    locks: tuple[Path, ...] = ()
    usd_per_gb_month: float = USD_PER_GB_MONTH


@dataclass(frozen=True)
class PlanDraft:
    """A plan, by how many bytes the refs that must be kept exceed the budget, and what is unseen.

    `unseen` has a sentence for each model on the Hub that may need a step and could not be read.
    """

    plan: RetentionPlan
    excess: int = 0
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckedPlan:
    """A plan that may be applied: the refs still to delete, and the files left unreferenced.

    `unreferenced` maps each repository to the large files (SHA-256 -> bytes) that only dropped
    revisions list, so that no kept revision needs them. `published` is what models on the Hub need.
    """

    plan: RetentionPlan
    locks: Mapping[str, Lock]
    published: PublishedUses
    deletable: tuple[Verdict, ...]
    unreferenced: Mapping[str, Mapping[str, int]]

    @property
    def unreferenced_bytes(self) -> int:
        return sum(sum(sizes.values()) for sizes in self.unreferenced.values())


@dataclass(frozen=True)
class RetainResult:
    """The labels of the deleted refs, and the bytes that were freed."""

    deleted: tuple[str, ...]
    freed: int = 0


def draft_plan(hub: Hub, request: RetainRequest, home: Path, progress: Progress) -> PlanDraft:
    """Decide on every tag and branch of the repositories, without deleting anything.

    Steps that locks and merges on the Hub need are kept like those that a lock in home needs.

    Raises UsageError, NotOnHub, or IntegrityError for a lock that cannot be read.
    """
    locks = load_locks(home, request.locks)
    trials = TrialLog(home / "trials.jsonl").read()
    _check_targets(request.targets, {trial.method for trial in trials})
    ref_infos = list(_read_refs(hub, request.repos, progress))
    groups = group_comparable(trials, {ref.sha for ref in ref_infos}, request.targets)
    budget = None
    if request.budget is not None:
        budget = parse_budget(request.budget, stored_bytes(ref_infos), request.usd_per_gb_month)
    published = find_published_uses(hub, request.repos, progress)
    verdicts = choose(ref_infos, locks, groups, budget, published.roles)
    kept = {ref.sha for ref in verdicts if ref.keep}
    plan = RetentionPlan(
        verdicts=tuple(verdicts),
        regrets=tuple(
            compute_regrets(groups, {ref.sha for ref in verdicts} - kept, request.targets)
        ),
        locks=tuple(sorted(locks)),
        targets=tuple(sorted(set(request.targets))),
        budget=request.budget,
        usd_per_gb_month=request.usd_per_gb_month,
    )
    excess = 0 if budget is None else max(0, stored_bytes(plan.kept) - budget)
    return PlanDraft(plan, excess, published.unseen)


def check_against_hub(
    hub: Hub, plan: RetentionPlan, home: Path, locks: Sequence[Path], progress: Progress
) -> CheckedPlan:
    """Check a plan against the current state of the Hub, its models and the locks.

    Nothing is deleted. A dropped ref that no longer exists is accepted: an earlier run may have
    crashed. Raises IntegrityError if a ref has moved, with both SHAs, or if a lock or a model on
    the Hub needs a dropped ref.
    """
    known_locks = load_locks(home, locks)
    refs = {repo: list_refs(hub, repo) for repo in plan.repos}
    published = find_published_uses(hub, plan.repos, progress)
    problems = [
        *_moved_refs(plan, refs),
        *_needed_by_locks(plan, known_locks),
        *_needed_by_models(plan, published),
        *_missing_locks(plan, known_locks),
    ]
    raise_together(IntegrityError, problems, _HINT)
    deletable = [v for v in plan.dropped if v.name in _refs_of_kind(refs[v.repo], v.kind)]
    unreferenced = _find_unreferenced(hub, plan, known_locks, published, deletable)
    return CheckedPlan(plan, known_locks, published, tuple(deletable), unreferenced)


def apply_plan(hub: Hub, checked: CheckedPlan, purging: bool, progress: Progress) -> RetainResult:
    """Delete what the plan drops: first refs and then, if `purging`, contents permanently.

    After a crash, a second call ends in the same state: deleted refs are skipped, and their
    contents are known from the plan.
    """
    total = len(checked.deletable)
    for done, verdict in enumerate(checked.deletable):
        progress(f"deleting {verdict.label}", done, total)
        _check_unmoved(hub, verdict)
        delete_ref(hub, verdict.repo, verdict.kind, verdict.name)
    deleted = tuple(verdict.label for verdict in checked.deletable)
    if not purging:
        return RetainResult(deleted)
    # Read again: somebody may have tagged a dropped commit or published a merge in the meantime.
    published = find_published_uses(hub, checked.plan.repos, progress)
    unreferenced = _find_unreferenced(hub, checked.plan, checked.locks, published, leaving=())
    return RetainResult(
        deleted,
        sum(purge(hub, repo, contents) for repo, contents in unreferenced.items() if contents),
    )


def load_locks(home: Path, more: Sequence[Path] = ()) -> dict[str, Lock]:
    """Load the locks in home and those of `more`, by their SHA-256.

    A lock that cannot be read is an error, because its commits could not be protected.
    """
    paths = [*sorted((home / LOCKS).glob("*.lock")), *more]
    locks = {}
    for path in paths:
        data = read_lock_bytes(path)
        locks[hashlib.sha256(data).hexdigest()] = parse_lock(data, str(path))
    return locks


def _check_targets(targets: Collection[str], tried: Collection[str]) -> None:
    known = {*METHODS, MOE, *tried}
    for name in targets:
        if name not in known:
            raise UnknownName("target", name, known)


def _read_refs(hub: Hub, repos: Sequence[str], progress: Progress) -> Iterator[RefInfo]:
    for repo in dict.fromkeys(repos):
        refs = list_refs(hub, repo)
        commits: dict[str, tuple[dict[str, int], Manifest | None]] = {}
        named_commits = [*refs.tags.items(), *refs.branches.items()]
        for done, (name, sha) in enumerate(named_commits):
            kind: RefKind = "tag" if done < len(refs.tags) else "branch"
            progress(f"{repo}@{name}", done, len(named_commits))
            if sha not in commits:
                commits[sha] = _read_commit(hub, Revision(ModelRef(repo, revision=name), sha))
            contents, manifest = commits[sha]
            step = None if name == "main" and kind == "branch" else step_of(name)
            yield RefInfo(
                *(repo, name, kind, sha, contents, step),
                own_accuracy=manifest.own_accuracy if manifest and step is not None else None,
                stopped_early=manifest is not None and manifest.training.get("stopped") == "early",
            )


def _read_commit(hub: Hub, revision: Revision) -> tuple[dict[str, int], Manifest | None]:
    files = list_files(hub, revision)
    contents = {_content_sha(file): file.size for file in files.values()}
    return contents, pin_revision(hub, revision).manifest if MANIFEST_JSON in files else None


def _content_sha(file: HubFile) -> str:
    return file.sha256 or file.blob_id


def _moved_refs(plan: RetentionPlan, refs: Mapping[str, Refs]) -> Iterator[str]:
    """Yield the refs that moved since the plan was made, except kept branches with new commits."""
    for verdict in plan.verdicts:
        current = _refs_of_kind(refs[verdict.repo], verdict.kind).get(verdict.name)
        gone_as_planned = current is None and not verdict.keep
        went_on = current is not None and verdict.keep and verdict.kind == "branch"
        if current != verdict.sha and not gone_as_planned and not went_on:
            yield f"{verdict.label} was {verdict.sha} in the plan, and is {current or 'gone'} now."


def _needed_by_locks(plan: RetentionPlan, locks: Mapping[str, Lock]) -> Iterator[str]:
    """Yield the dropped refs that a lock needs."""
    for digest, lock in sorted(locks.items()):
        roles = required_commits(lock)
        for verdict in plan.dropped:
            if verdict.sha in roles:
                role = f"the {roles[verdict.sha]} of lock {digest[:12]}"
                yield f"{verdict.label} ({verdict.sha}) is {role}."


def _needed_by_models(plan: RetentionPlan, published: PublishedUses) -> Iterator[str]:
    """Yield the dropped refs that a model on the Hub needs."""
    roles = published.roles
    for verdict in plan.dropped:
        if verdict.sha in roles:
            yield f"{verdict.label} ({verdict.sha}) is the {roles[verdict.sha]}."


def _missing_locks(plan: RetentionPlan, locks: Mapping[str, Lock]) -> Iterator[str]:
    for digest in sorted(set(plan.locks) - locks.keys()):
        yield f"The plan depends on lock {digest[:12]}, which was not found: name it with --lock."


def _check_unmoved(hub: Hub, verdict: Verdict) -> None:
    """Check a ref right before its deletion: a Hub has no delete-if-unchanged."""
    current = _refs_of_kind(list_refs(hub, verdict.repo), verdict.kind).get(verdict.name)
    if current not in (None, verdict.sha):
        raise IntegrityError(
            f"{verdict.label} was {verdict.sha} in the plan, and is {current} now.",
            "It was not deleted. Make a new plan with `hubmerge retain --plan`.",
        )


def _find_unreferenced(
    hub: Hub,
    plan: RetentionPlan,
    locks: Mapping[str, Lock],
    published: PublishedUses,
    leaving: Collection[Verdict],
) -> dict[str, dict[str, int]]:
    """Return the large files that nothing needs once the `leaving` refs are deleted.

    Refs, locks and models on the Hub need files.

    Only files of dropped refs are considered: the commits of dropped steps may stay reachable from
    a branch and still list their files, but can no longer be loaded after a purge.
    """
    pins = [pin for lock in locks.values() for pin in (*lock.experts, lock.base)]
    locked = {digest for pin in pins for digest in pin.files.values()}
    unreferenced = {}
    for repo in sorted({verdict.repo for verdict in plan.dropped}):
        dropped = (verdict for verdict in plan.dropped if verdict.repo == repo)
        large = {c: size for v in dropped for c, size in v.contents.items() if len(c) == 64}
        gone = {(_full_ref_name(v), v.sha) for v in leaving if v.repo == repo}
        remaining = {sha for ref, sha in list_all_refs(hub, repo).items() if (ref, sha) not in gone}
        listed = set[str]().union(*(_listed_contents(hub, repo, sha) for sha in sorted(remaining)))
        pinned = {pin.source.sha for pin in pins if pin.source.name == repo}
        needed = (pinned | set(published.commits.get(repo, ()))) - remaining
        kept = listed.union(
            locked, *(_listed_contents_if_any(hub, repo, sha) for sha in sorted(needed))
        )
        unreferenced[repo] = {c: size for c, size in large.items() if c not in kept}
    return unreferenced


def _full_ref_name(verdict: Verdict) -> str:
    return f"refs/{'tags' if verdict.kind == 'tag' else 'heads'}/{verdict.name}"


def _listed_contents(hub: Hub, repo: str, sha: str) -> set[str]:
    files = list_files(hub, Revision(ModelRef(repo), sha))
    return {_content_sha(file) for file in files.values()}


def _listed_contents_if_any(hub: Hub, repo: str, sha: str) -> set[str]:
    """Return the contents of a lock's commit; a lock of another Hub may name an unknown one."""
    try:
        return _listed_contents(hub, repo, sha)
    except NotOnHub:
        return set()


def _refs_of_kind(refs: Refs, kind: RefKind) -> Mapping[str, str]:
    return refs.tags if kind == "tag" else refs.branches
