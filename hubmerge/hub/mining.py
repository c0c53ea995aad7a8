"""Find the training steps in a history of commits: titles suggest a step, contents decide.

Trainer titles its pushes "Training in progress, step N", but it pushes the files that are in its
folder when the push runs. With hub_always_push the title may name one step and the weights belong
to another. So the same weights are searched in checkpoints whose trainer_state.json has a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hubmerge.hub.commit_contents import Contents, SavedModel
from hubmerge.hub.history import Commit
from hubmerge.refs import ModelRef, Revision, step_of

# The contents have the step; only a title has it; a title of a run that has wrong titles.
CONTENTS_CONFIDENCE, _TITLE_CONFIDENCE, _DOUBTFUL_TITLE_CONFIDENCE = 0.9, 0.5, 0.2
# Where contents and title disagree, another checkpoint of the step is preferred.
_RELABELLED_CONFIDENCE = 0.8
LAST_CHECKPOINT = "last-checkpoint"

# A large upload becomes several commits, "(part 2)" and so on; a merged pull request has "(#12)".
_TITLE_SUFFIX = r"(?: \(part (?P<part>[0-9]{1,6})\))?(?: \(#[0-9]{1,9}\))?"
_IN_PROGRESS = re.compile(
    rf"Training in progress, (?P<kind>step|epoch) (?P<number>[0-9]{{1,12}})"
    rf"(?P<checkpoint>, checkpoint)?{_TITLE_SUFFIX}"
)
_STEP_NAME = re.compile(
    rf"(?:(?:global_)?step[-_ ]?|checkpoint-)(?P<number>[0-9]{{1,12}}){_TITLE_SUFFIX}"
)
_END_OF_TRAINING = re.compile(rf"(?:Model save|End of training){_TITLE_SUFFIX}")


@dataclass(frozen=True)
class Title:
    """The parsed title of a training commit; `number` is None at the end of training."""

    kind: Literal["step", "epoch", "end"]
    number: int | None = None
    is_checkpoint: bool = False
    part: int = 1


@dataclass(frozen=True)
class TrainingCommit:
    """A training commit, the number of its run, and the contents before and after it."""

    commit: Commit
    title: Title
    run: int
    before: Contents
    after: Contents


def parse_title(text: str) -> Title | None:
    """The title of a training commit, None for any other; anybody may have written it."""
    if match := _IN_PROGRESS.fullmatch(text):
        kind: Literal["step", "epoch"] = "step" if match["kind"] == "step" else "epoch"
        return Title(kind, int(match["number"]), bool(match["checkpoint"]), int(match["part"] or 1))
    if match := _STEP_NAME.fullmatch(text):
        return Title("step", int(match["number"]), part=int(match["part"] or 1))
    if match := _END_OF_TRAINING.fullmatch(text):
        return Title("end", part=int(match["part"] or 1))
    return None


def commits_to_read(commits: Sequence[Commit]) -> dict[str, set[str]]:
    """The commits whose contents are needed, and the checkpoint folders to read in each.

    These are the training commits, the newest commit, and the parent of each of them, which shows
    what was there before.
    """
    titles = [parse_title(commit.title) for commit in commits]
    is_parent = [True, *map(bool, titles)]
    return {
        commit.sha: {LAST_CHECKPOINT, *([f"checkpoint-{title.number}"] if title else [])}
        for index, (commit, title) in enumerate(zip(commits, titles, strict=True))
        if title or is_parent[index] or index == 1
    }


def mine_revisions(
    repo_id: str, commits: Sequence[Commit], contents: Mapping[str, Contents]
) -> list[Revision]:
    """The revisions in a history (`commits` newest first), from the contents of its commits.

    There is one for each step of each run: the one with the highest confidence, and among equals
    the weights at the root. The step is None for an epoch or an end of training whose step no
    contents prove. Checkpoint folders of the newest commit belong to no run.
    """
    head = commits[0].sha
    before = contents.get(commits[1].sha, {}) if len(commits) > 1 else {}
    training = _training_commits(commits, contents)
    changes = [(commit.before, commit.after) for commit in training]
    proven = _proven_steps([*changes, (before, contents[head])])
    doubtful_runs = {commit.run for commit in training if _has_wrong_title(commit, proven)}
    revisions = list(_checkpoint_folders(repo_id, head, contents[head]))
    known_steps = {(_weights_of(revision, contents), revision.step) for revision in revisions}
    revisions += [
        revision
        for revision in _most_confident(
            revision
            for commit in training
            for revision in _revisions_of(repo_id, commit, proven, doubtful_runs)
        )
        if (_weights_of(revision, contents), revision.step) not in known_steps
    ]
    claims = _claimed_steps(training)
    revisions = [_with_claims(item, claims, contents) for item in revisions]
    known_weights = {_weights_of(revision, contents) for revision in revisions}
    return revisions + [
        revision
        for revision in _head_revisions(repo_id, head, contents[head], proven)
        if _weights_of(revision, contents) not in known_weights
    ]


def _claimed_steps(training: Iterable[TrainingCommit]) -> dict[str, set[int]]:
    """Weights -> the steps that titles give them: a commit may not have pushed new weights."""
    claims: dict[str, set[int]] = {}
    for commit in training:
        weights = commit.after.get("", SavedModel()).weights
        if weights and commit.title.kind == "step" and not commit.title.is_checkpoint:
            claims.setdefault(weights, set()).add(commit.title.number or 0)
    return claims


def _with_claims(
    revision: Revision, claims: Mapping[str, set[int]], contents: Mapping[str, Contents]
) -> Revision:
    """The revision, with a note if titles of other steps have the same weights."""
    others = claims.get(_weights_of(revision, contents) or "", set()) - {revision.step}
    if revision.run is None or not others or "same weights" in revision.note:
        return revision
    steps = ", ".join(map(str, sorted(others)))
    note = f"the title of step {steps} is over the same weights"
    return replace(revision, note="; ".join(filter(None, (revision.note, note))))


def _training_commits(
    commits: Sequence[Commit], contents: Mapping[str, Contents]
) -> list[TrainingCommit]:
    """The training commits, oldest first, each with the number of its run."""
    training, run, previous = list[TrainingCommit](), 1, None
    before: Contents = {}
    for commit in reversed(commits):
        after = contents.get(commit.sha, {})
        if title := parse_title(commit.title):
            if previous and title == replace(previous, part=previous.part + 1):
                before = training.pop().before  # an upload in parts is complete with its last part
            elif previous and _is_restart(previous, title):
                run += 1
            training.append(TrainingCommit(commit, title, run, before, after))
            previous = title
        before = after
    return training


def _is_restart(previous: Title, title: Title) -> bool:
    """Whether a new run starts between two commits: the step falls, or training had ended."""
    if title.kind == "end":
        return False
    if previous.kind != title.kind:
        return True
    number, before = title.number or 0, previous.number or 0
    return number < before or (number == before and not title.is_checkpoint)


def _proven_steps(changes: Iterable[tuple[Contents, Contents]]) -> dict[str, set[int]]:
    """Weights -> their steps, from trainer states or the names of checkpoint folders."""
    proven: dict[str, set[int]] = {}
    for before, after in changes:
        for folder, saved in after.items():
            # A trainer state at the root that did not change belongs to the earlier weights.
            is_stale = folder == "" and saved.state == before.get("", SavedModel()).state
            step = step_of(folder) if saved.step is None else saved.step
            if saved.weights and step is not None and not is_stale:
                proven.setdefault(saved.weights, set()).add(step)
    return proven


def _has_wrong_title(commit: TrainingCommit, proven: Mapping[str, set[int]]) -> bool:
    """Whether the root has new weights of another step than the one in the title."""
    title = commit.title
    if title.kind != "step" or title.is_checkpoint or not _has_new_weights(commit, ""):
        return False
    steps = proven.get(str(commit.after[""].weights))
    return steps is not None and title.number not in steps


def _has_new_weights(commit: TrainingCommit, folder: str) -> bool:
    """Whether the commit changed the weights in a folder; without that there is no new step."""
    after, before = commit.after.get(folder, SavedModel()), commit.before.get(folder, SavedModel())
    return after.weights is not None and after.weights != before.weights


def _revisions_of(
    repo_id: str, commit: TrainingCommit, proven: Mapping[str, set[int]], doubtful_runs: set[int]
) -> Iterator[Revision]:
    """The checkpoint folders, or the weights at the root, that are new in a commit; maybe none."""
    title, sha = commit.title, commit.commit.sha
    for folder in (LAST_CHECKPOINT, f"checkpoint-{title.number}") if title.is_checkpoint else ("",):
        if not _has_new_weights(commit, folder):
            continue
        saved = commit.after[folder]
        steps = proven.get(str(saved.weights), set())
        titled_step = title.number if title.kind == "step" else None
        step = titled_step if titled_step in steps else min(steps, default=titled_step)
        doubtful = commit.run in doubtful_runs and not folder
        revision = Revision(
            ModelRef(repo_id, revision=sha, subfolder=folder or None),
            sha,
            step,
            origin=LAST_CHECKPOINT if folder else "contents" if steps else _title_source(title),
            confidence=_confidence(step, titled_step, steps, doubtful),
            run=commit.run,
        )
        yield replace(revision, note="; ".join(_notes(title, step, steps, saved, doubtful)))


def _title_source(title: Title) -> str:
    return "end" if title.kind == "end" else "title"


def _confidence(
    step: int | None, titled_step: int | None, steps: set[int], doubtful: bool
) -> float:
    if not steps:
        return _DOUBTFUL_TITLE_CONFIDENCE if doubtful else _TITLE_CONFIDENCE
    if step == titled_step or (titled_step is None and len(steps) == 1):
        return CONTENTS_CONFIDENCE
    return _RELABELLED_CONFIDENCE if len(steps) == 1 else _TITLE_CONFIDENCE


def _notes(
    title: Title, step: int | None, steps: set[int], saved: SavedModel, doubtful: bool
) -> Iterator[str]:
    if title.kind == "end":
        yield "end of training"
    elif title.kind == "epoch":
        yield f"epoch {title.number}"
    elif step != title.number:
        yield f"its title says step {title.number}, but its weights are those of step {step}"
    if len(steps) > 1 and title.number not in steps:
        yield f"steps {', '.join(map(str, sorted(steps)))} have the same weights"
    if title.kind == "step" and not steps:
        wrong = ", and other titles of its run are wrong" if doubtful else ""
        yield f"its step is known only from the commit's title{wrong}"
    if saved.is_pickled:
        yield "its weights are pickles"


def _most_confident(revisions: Iterable[Revision]) -> list[Revision]:
    """One revision for each step of a run, and every revision without a step."""
    best: dict[tuple[int | None, int | str], Revision] = {}
    for revision in revisions:
        key = (revision.run, revision.sha if revision.step is None else revision.step)
        if key not in best or revision.confidence > best[key].confidence:
            best[key] = revision
    return list(best.values())


def _checkpoint_folders(repo_id: str, sha: str, head: Contents) -> Iterator[Revision]:
    """The checkpoint-N folders of the newest commit that have weights."""
    for name, saved in head.items():
        named_step = step_of(name)
        if saved.weights and named_step is not None:
            step = named_step if saved.step is None else saved.step
            note = "" if step == named_step else f"its trainer state says step {step}"
            ref = ModelRef(repo_id, subfolder=name)
            yield Revision(ref, sha, step, "folder", CONTENTS_CONFIDENCE, note=note)


def _head_revisions(
    repo_id: str, sha: str, head: Contents, proven: Mapping[str, set[int]]
) -> Iterator[Revision]:
    """The weights of the newest commit whose step is proven, for example after a squash."""
    folders = {head[name].weights: name for name in (LAST_CHECKPOINT, "") if name in head}
    for weights, folder in folders.items():
        if steps := proven.get(weights or ""):
            ref = ModelRef(repo_id, revision=sha, subfolder=folder or None)
            source = LAST_CHECKPOINT if folder else "contents"
            yield Revision(ref, sha, min(steps), source, CONTENTS_CONFIDENCE)


def _weights_of(revision: Revision, contents: Mapping[str, Contents]) -> str | None:
    return contents[revision.sha][revision.ref.subfolder or ""].weights
