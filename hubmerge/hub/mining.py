"""From a history of commits to the steps it holds: titles suggest, contents decide.

A Trainer titles its pushes "Training in progress, step N", but pushes what lies in its folder when
the push runs: with hub_always_push the title says one step and the weights are another's. So equal
weights are looked for in checkpoints whose trainer_state.json says their step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hubmerge.hub.commit_contents import Contents, Saved
from hubmerge.hub.history import Commit
from hubmerge.refs import ModelRef, Revision, step_of

# Contents say so; no more than a title says so; a title of a run whose other titles are wrong.
PROVEN, _TITLED, _DOUBTED = 0.9, 0.5, 0.2
# Where contents and title disagree, another checkpoint of that step is to be preferred.
_RELABELLED = 0.8
LAST = "last-checkpoint"

# One upload may become several commits, "(part 2)" and on; a merged pull request is "(#12)".
_TAIL = r"(?: \(part (?P<part>[0-9]{1,6})\))?(?: \(#[0-9]{1,9}\))?"
_IN_PROGRESS = re.compile(
    rf"Training in progress, (?P<kind>step|epoch) (?P<number>[0-9]{{1,12}})"
    rf"(?P<checkpoint>, checkpoint)?{_TAIL}"
)
_BARE = re.compile(rf"(?:(?:global_)?step[-_ ]?|checkpoint-)(?P<number>[0-9]{{1,12}}){_TAIL}")
_END = re.compile(rf"(?:Model save|End of training){_TAIL}")


@dataclass(frozen=True)
class Title:
    """What the title of a training commit says; `number` is None at the end of training."""

    kind: Literal["step", "epoch", "end"]
    number: int | None = None
    is_checkpoint: bool = False
    part: int = 1


@dataclass(frozen=True)
class Push:
    """A training commit, its run, and what it holds now and held before."""

    commit: Commit
    title: Title
    run: int
    before: Contents
    now: Contents


def parse_title(text: str) -> Title | None:
    """What a commit's title says of training, None for any other; anybody may have written it."""
    if found := _IN_PROGRESS.fullmatch(text):
        kind: Literal["step", "epoch"] = "step" if found["kind"] == "step" else "epoch"
        return Title(kind, int(found["number"]), bool(found["checkpoint"]), int(found["part"] or 1))
    if found := _BARE.fullmatch(text):
        return Title("step", int(found["number"]), part=int(found["part"] or 1))
    if found := _END.fullmatch(text):
        return Title("end", part=int(found["part"] or 1))
    return None


def wanted(commits: Sequence[Commit]) -> dict[str, set[str]]:
    """The commits whose contents decide, and the folders of interest in each.

    Those are the training commits, the newest, and the one before each of them, which shows what
    was there already.
    """
    titles = [parse_title(commit.title) for commit in commits]
    newer = [True, *map(bool, titles)]
    return {
        commit.sha: {LAST, *([f"checkpoint-{title.number}"] if title else [])}
        for place, (commit, title) in enumerate(zip(commits, titles, strict=True))
        if title or newer[place] or place == 1
    }


def mine(
    repo_id: str, commits: Sequence[Commit], contents: Mapping[str, Contents]
) -> list[Revision]:
    """The revisions in a history, youngest commit first, by what the wanted commits hold.

    One for each step of each run: the one whose step is surest, and of equals the root's weights.
    The step is None for an epoch or an end of training that no contents date. Folders that the
    newest commit holds belong to no run.
    """
    head = commits[0].sha
    before = contents.get(commits[1].sha, {}) if len(commits) > 1 else {}
    pushes = _pushes(commits, contents)
    proofs = _proofs([*((one.before, one.now) for one in pushes), (before, contents[head])])
    lying = {push.run for push in pushes if _is_lie(push, proofs)}
    folders = list(_folders(repo_id, head, contents[head]))
    known = {(_weights(one, contents), one.step) for one in folders}
    mined = _surest(one for push in pushes for one in _brought(repo_id, push, proofs, lying))
    found = [*folders, *(one for one in mined if (_weights(one, contents), one.step) not in known)]
    seen = {_weights(one, contents) for one in found}
    rest = _rest(repo_id, head, contents[head], proofs)
    return [*found, *(one for one in rest if _weights(one, contents) not in seen)]


def _pushes(commits: Sequence[Commit], contents: Mapping[str, Contents]) -> list[Push]:
    """The training commits, oldest first, each with the number of its run."""
    found, run, last = list[Push](), 1, None
    older: Contents = {}
    for commit in reversed(commits):
        now = contents.get(commit.sha, {})
        if title := parse_title(commit.title):
            if last and title == replace(last, part=last.part + 1):
                older = found.pop().before  # what was uploaded in parts is whole with the last
            elif last and _restarts(last, title):
                run += 1
            found.append(Push(commit, title, run, older, now))
            last = title
        older = now
    return found


def _restarts(last: Title, title: Title) -> bool:
    """Whether training began anew between two pushes: going back, or going on after the end."""
    if title.kind == "end":
        return False
    if last.kind != title.kind:
        return True
    number, before = title.number or 0, last.number or 0
    return number < before or (number == before and not title.is_checkpoint)


def _proofs(changes: Iterable[tuple[Contents, Contents]]) -> dict[str, set[int]]:
    """Weights -> the steps that a trainer state, or the name of a checkpoint folder, gives them."""
    proofs: dict[str, set[int]] = {}
    for before, now in changes:
        for folder, saved in now.items():
            # A state that lay at the root before tells of the weights that lay there then.
            stale = folder == "" and saved.state == before.get("", Saved()).state
            step = step_of(folder) if saved.step is None else saved.step
            if saved.weights and step is not None and not stale:
                proofs.setdefault(saved.weights, set()).add(step)
    return proofs


def _is_lie(push: Push, proofs: Mapping[str, set[int]]) -> bool:
    """Whether the root holds new weights of another step than the title says."""
    if push.title.kind != "step" or push.title.is_checkpoint or not _is_new(push, ""):
        return False
    steps = proofs.get(str(push.now[""].weights))
    return steps is not None and push.title.number not in steps


def _is_new(push: Push, folder: str) -> bool:
    """Whether a folder holds weights that it did not hold before: all else is no new step."""
    now, before = push.now.get(folder, Saved()), push.before.get(folder, Saved())
    return now.weights is not None and now.weights != before.weights


def _brought(
    repo_id: str, push: Push, proofs: Mapping[str, set[int]], lying: set[int]
) -> Iterator[Revision]:
    """What a push brought: checkpoint folders, or new weights at the root; perhaps nothing."""
    title, sha = push.title, push.commit.sha
    for folder in (LAST, f"checkpoint-{title.number}") if title.is_checkpoint else ("",):
        if not _is_new(push, folder):
            continue
        saved = push.now[folder]
        steps = proofs.get(str(saved.weights), set())
        said = title.number if title.kind == "step" else None
        step = said if said in steps else min(steps, default=said)
        doubtful = push.run in lying and not folder
        revision = Revision(
            ModelRef(repo_id, revision=sha, subfolder=folder or None),
            sha,
            step,
            found=LAST if folder else "contents" if steps else _found(title),
            confidence=_confidence(step, said, steps, doubtful),
            run=push.run,
        )
        yield replace(revision, note="; ".join(_notes(title, step, steps, saved, doubtful)))


def _found(title: Title) -> str:
    return "end" if title.kind == "end" else "title"


def _confidence(step: int | None, said: int | None, steps: set[int], doubtful: bool) -> float:
    if not steps:
        return _DOUBTED if doubtful else _TITLED
    if step == said or (said is None and len(steps) == 1):
        return PROVEN
    return _RELABELLED if len(steps) == 1 else _TITLED


def _notes(
    title: Title, step: int | None, steps: set[int], saved: Saved, doubtful: bool
) -> Iterator[str]:
    if title.kind == "end":
        yield "end of training"
    elif title.kind == "epoch":
        yield f"epoch {title.number}"
    elif step != title.number:
        yield f"its title says step {title.number}, its weights are those of step {step}"
    if len(steps) > 1 and title.number not in steps:
        yield f"steps {', '.join(map(str, sorted(steps)))} have the same weights"
    if title.kind == "step" and not steps:
        yield "only a title says so" + (", and others of its run are wrong" if doubtful else "")
    if saved.is_pickled:
        yield "its weights are pickles"


def _surest(mined: Iterable[Revision]) -> list[Revision]:
    """One revision for each step of a run, and every one that has no step."""
    best: dict[tuple[int | None, int | str], Revision] = {}
    for one in mined:
        key = (one.run, one.sha if one.step is None else one.step)
        if key not in best or one.confidence > best[key].confidence:
            best[key] = one
    return list(best.values())


def _folders(repo_id: str, sha: str, head: Contents) -> Iterator[Revision]:
    """The checkpoint-N folders of the newest commit that hold weights."""
    for name, saved in head.items():
        named = step_of(name)
        if saved.weights and named is not None:
            step = named if saved.step is None else saved.step
            note = "" if step == named else f"its trainer state says step {step}"
            ref = ModelRef(repo_id, subfolder=name)
            yield Revision(ref, sha, step, "folder", PROVEN, note=note)


def _rest(
    repo_id: str, sha: str, head: Contents, proofs: Mapping[str, set[int]]
) -> Iterator[Revision]:
    """What the newest commit tells by itself, as after a squash: weights whose step is known."""
    told = {head[name].weights: name for name in (LAST, "") if name in head}
    for weights, folder in told.items():
        if steps := proofs.get(weights or ""):
            ref = ModelRef(repo_id, revision=sha, subfolder=folder or None)
            yield Revision(ref, sha, min(steps), LAST if folder else "contents", PROVEN)


def _weights(one: Revision, contents: Mapping[str, Contents]) -> str | None:
    return contents[one.sha][one.ref.subfolder or ""].weights
