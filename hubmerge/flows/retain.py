"""hubmerge retain: which step revisions stay, written down as a plan, and the plan carried out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import IntegrityError, NotOnHub, UnknownName, raise_together
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import HubFile, list_files
from hubmerge.hub.removal import delete_name, list_every_ref, purge
from hubmerge.hub.step_names import Refs, list_refs
from hubmerge.kinds import MOE
from hubmerge.lock import Lock, parse_lock, read_lock
from hubmerge.manifest import NAME, Manifest
from hubmerge.merging.registry import METHODS
from hubmerge.opening.references import pin_revision
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, Revision, step_of
from hubmerge.retention.choice import Kind, Named, Verdict, choose, references, stored
from hubmerge.retention.evidence import comparable, regrets
from hubmerge.retention.plan import USD_PER_GB_MONTH, Plan, parse_budget
from hubmerge.trials import TrialLog

LOCKS = "locks"
_ANEW = "Nothing was deleted. Make the plan anew with `hubmerge retain --plan`."


@dataclass(frozen=True)
class RetainRequest:
    """What was asked for: repositories, budget as typed, targets (methods), locks besides ours."""

    repos: tuple[str, ...]
    budget: str | None = None
    targets: tuple[str, ...] = ()
    locks: tuple[Path, ...] = ()
    usd_per_gb_month: float = USD_PER_GB_MONTH


@dataclass(frozen=True)
class Drafted:
    """A plan, and by how many bytes what must stay exceeds the budget."""

    plan: Plan
    excess: int = 0


@dataclass(frozen=True)
class Checked:
    """A plan that may be carried out: what is still there to delete, and what that leaves behind.

    `stranded` maps each repository to the large files (SHA-256 -> bytes) that only dropped
    revisions list, so that nothing that stays would miss them.
    """

    plan: Plan
    locks: Mapping[str, Lock]
    there: tuple[Verdict, ...]
    stranded: Mapping[str, Mapping[str, int]]

    @property
    def stranded_bytes(self) -> int:
        return sum(sum(its.values()) for its in self.stranded.values())


@dataclass(frozen=True)
class Applied:
    """What was deleted, and the bytes that are free for it."""

    deleted: tuple[str, ...]
    freed: int = 0


def draft(hub: Hub, request: RetainRequest, home: Path, progress: Progress) -> Drafted:
    """Decide on every tag and branch of the repositories; nothing is deleted.

    Raises UsageError, NotOnHub, or IntegrityError for a lock that cannot be read.
    """
    locks = known_locks(home, request.locks)
    trials = TrialLog(home / "trials.jsonl").read()
    _check_targets(request.targets, {trial.method for trial in trials})
    named = list(_named(hub, request.repos, progress))
    groups = comparable(trials, {one.sha for one in named}, request.targets)
    budget = None
    if request.budget is not None:
        budget = parse_budget(request.budget, stored(named), request.usd_per_gb_month)
    verdicts = choose(named, locks, groups, budget)
    kept = {one.sha for one in verdicts if one.keep}
    plan = Plan(
        verdicts=tuple(verdicts),
        regrets=tuple(regrets(groups, {one.sha for one in verdicts} - kept, request.targets)),
        locks=tuple(sorted(locks)),
        targets=tuple(sorted(set(request.targets))),
        budget=request.budget,
        usd_per_gb_month=request.usd_per_gb_month,
    )
    over = 0 if budget is None else max(0, stored(plan.kept) - budget)
    return Drafted(plan, over)


def check(hub: Hub, plan: Plan, home: Path, locks: Sequence[Path]) -> Checked:
    """Hold a plan against the Hub and the locks of now; nothing is deleted.

    A dropped name that is gone already is fine: a crash may have come in between. Raises
    IntegrityError, with both SHAs, where a name has moved, and where a lock needs what would go.
    """
    known = known_locks(home, locks)
    refs = {repo: list_refs(hub, repo) for repo in plan.repos}
    problems = [*_moved(plan, refs), *_needed(plan, known), *_missing(plan, known)]
    raise_together(IntegrityError, problems, _ANEW)
    there = [one for one in plan.dropped if one.name in _of_kind(refs[one.repo], one.kind)]
    return Checked(plan, known, tuple(there), _stranded(hub, plan, known, there))


def carry_out(hub: Hub, checked: Checked, purging: bool, progress: Progress) -> Applied:
    """Delete what the plan drops: names first, and only then, if `purging`, contents for good.

    Killed in between, the same again ends in the same place: names that are gone are passed over,
    and what only they held is told from the plan, not from them.
    """
    total = len(checked.there)
    for done, one in enumerate(checked.there):
        progress(f"deleting {one.label}", done, total)
        _check_still(hub, one)
        delete_name(hub, one.repo, one.kind, one.name)
    deleted = tuple(one.label for one in checked.there)
    if not purging:
        return Applied(deleted)
    # Asked anew: somebody may have tagged a dropped commit since.
    stranded = _stranded(hub, checked.plan, checked.locks, leaving=())
    return Applied(deleted, sum(purge(hub, repo, its) for repo, its in stranded.items() if its))


def known_locks(home: Path, more: Sequence[Path] = ()) -> dict[str, Lock]:
    """Every lock that was selected here, and those of `more`, by their SHA-256.

    One that cannot be read is an error: what it needs could not be kept.
    """
    paths = [*sorted((home / LOCKS).glob("*.lock")), *more]
    locks = {}
    for path in paths:
        data = read_lock(path)
        locks[hashlib.sha256(data).hexdigest()] = parse_lock(data, str(path))
    return locks


def _check_targets(targets: Collection[str], tried: Collection[str]) -> None:
    known = {*METHODS, MOE, *tried}
    for name in targets:
        if name not in known:
            raise UnknownName("target", name, known)


def _named(hub: Hub, repos: Sequence[str], progress: Progress) -> Iterator[Named]:
    for repo in dict.fromkeys(repos):
        refs, read = list_refs(hub, repo), dict[str, tuple[dict[str, int], Manifest | None]]()
        names = [*refs.tags.items(), *refs.branches.items()]
        for done, (name, sha) in enumerate(names):
            kind: Kind = "tag" if done < len(refs.tags) else "branch"
            progress(f"{repo}@{name}", done, len(names))
            if sha not in read:
                read[sha] = _read(hub, Revision(ModelRef(repo, revision=name), sha))
            contents, manifest = read[sha]
            step = None if name == "main" and kind == "branch" else step_of(name)
            yield Named(
                *(repo, name, kind, sha, contents, step),
                own=_own(manifest) if step is not None else None,
                stopped=manifest is not None and manifest.training.get("stopped") == "early",
            )


def _read(hub: Hub, revision: Revision) -> tuple[dict[str, int], Manifest | None]:
    files = list_files(hub, revision)
    contents = {_content(file): file.size for file in files.values()}
    return contents, pin_revision(hub, revision).manifest if NAME in files else None


def _content(file: HubFile) -> str:
    return file.sha256 or file.blob


def _own(manifest: Manifest | None) -> float | None:
    """The expert's own validation accuracy; anybody may have written it, so it may be none."""
    curve = manifest.validation if manifest else ()
    return curve[-1].accuracy if curve and 0 <= curve[-1].accuracy <= 1 else None


def _moved(plan: Plan, refs: Mapping[str, Refs]) -> Iterator[str]:
    """Names that are not where the plan saw them; that a kept branch goes on is no harm."""
    for one in plan.verdicts:
        now = _of_kind(refs[one.repo], one.kind).get(one.name)
        gone_as_planned = now is None and not one.keep
        went_on = now is not None and one.keep and one.kind == "branch"
        if now != one.sha and not gone_as_planned and not went_on:
            yield f"{one.label} was {one.sha} in the plan, and is {now or 'gone'} now."


def _needed(plan: Plan, locks: Mapping[str, Lock]) -> Iterator[str]:
    """Whatever a lock needs is not deleted, whoever wrote the plan."""
    for digest, lock in sorted(locks.items()):
        needed = references(lock)
        for one in plan.dropped:
            if one.sha in needed:
                yield f"{one.label} ({one.sha}) is the {needed[one.sha]} of lock {digest[:12]}."


def _missing(plan: Plan, locks: Mapping[str, Lock]) -> Iterator[str]:
    for digest in sorted(set(plan.locks) - locks.keys()):
        yield f"The plan heeds the lock {digest[:12]}, which is not here: name it with --lock."


def _check_still(hub: Hub, one: Verdict) -> None:
    """Look once more right before: a Hub cannot delete a name only where it still points."""
    now = _of_kind(list_refs(hub, one.repo), one.kind).get(one.name)
    if now not in (None, one.sha):
        raise IntegrityError(
            f"{one.label} was {one.sha} in the plan, and is {now} now.",
            "It was left alone. Make the plan anew with `hubmerge retain --plan`.",
        )


def _stranded(
    hub: Hub, plan: Plan, locks: Mapping[str, Lock], leaving: Collection[Verdict]
) -> dict[str, dict[str, int]]:
    """The large files that, once the `leaving` are gone, no ref lists and no lock vouches for.

    The commits of steps stay reachable from a branch that went on, and list them still; they can
    then no longer be loaded. So nothing is ever told here but what the plan itself drops.
    """
    pins = [pin for lock in locks.values() for pin in (*lock.experts, lock.base)]
    locked = {digest for pin in pins for digest in pin.files.values()}
    found = {}
    for repo in sorted({one.repo for one in plan.dropped}):
        dropped = (one for one in plan.dropped if one.repo == repo)
        large = {c: size for one in dropped for c, size in one.contents.items() if len(c) == 64}
        gone = {(_full_name(one), one.sha) for one in leaving if one.repo == repo}
        left = {sha for ref, sha in list_every_ref(hub, repo).items() if (ref, sha) not in gone}
        listed = set[str]().union(*(_listed(hub, repo, sha) for sha in sorted(left)))
        ours = {pin.source.sha for pin in pins if pin.source.name == repo} - left
        kept = listed.union(locked, *(_listed_if_there(hub, repo, sha) for sha in sorted(ours)))
        found[repo] = {content: size for content, size in large.items() if content not in kept}
    return found


def _full_name(one: Verdict) -> str:
    return f"refs/{'tags' if one.kind == 'tag' else 'heads'}/{one.name}"


def _listed(hub: Hub, repo: str, sha: str) -> set[str]:
    files = list_files(hub, Revision(ModelRef(repo), sha))
    return {_content(file) for file in files.values()}


def _listed_if_there(hub: Hub, repo: str, sha: str) -> set[str]:
    """What a lock's commit lists; a lock from another Hub may name one that this one has not."""
    try:
        return _listed(hub, repo, sha)
    except NotOnHub:
        return set()


def _of_kind(refs: Refs, kind: Kind) -> Mapping[str, str]:
    return refs.tags if kind == "tag" else refs.branches
