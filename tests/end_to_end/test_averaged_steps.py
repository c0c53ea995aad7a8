"""A lock that averages steps of an expert, or leaves an expert out, and the merge built from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hubmerge.hub.client import Hub
from hubmerge.lock import LOCK_FILE, Lock
from hubmerge.lock_file import parse_lock
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.opening.references import open_ref
from hubmerge.recipe_ids import averaged_key
from hubmerge.refs import parse_ref
from hubmerge.source import Source
from hubmerge.weights.checkpoint import open_checkpoint
from tests.end_to_end.conftest import REPOS, ROWS, WEIGHTS, Command
from tests.locks import stderr_of


def replace_last_pick(lock: Lock, *experts: Source) -> Lock:
    """A lock whose pick of the last steps has these experts, and is chosen."""
    pick = dataclasses.replace(lock.pick("last"), experts=experts)
    others = tuple(pick for pick in lock.picks if pick.policy != "last")
    return dataclasses.replace(lock, picks=(pick, *others), chosen="last", conclusive=False)


@pytest.fixture
def averaged(pinned: Lock) -> Lock:
    return average_steps(pinned, (1.0, 1.0, 1.0))


def average_steps(pinned: Lock, shares: Sequence[float]) -> Lock:
    """The mean of steps 2, 4 and 8 of the first expert by shares, and step 8 of the second."""
    first, second = pinned.pick("last").experts
    steps = [pin.source for pin in pinned.experts if pin.source.name == first.name]
    steps.sort(key=lambda source: source.step or 0)
    members = [
        dataclasses.replace(step, weight=share) for step, share in zip(steps, shares, strict=True)
    ]
    weights = averaged_key([member.content_key for member in members], shares)
    mean = dataclasses.replace(first, averaged=tuple(members), weights=weights)
    return replace_last_pick(pinned, mean, second)


@pytest.mark.parametrize(
    ("shares", "format", "words"),
    [((1.0, 1.0, 1.0), 2, "2+4+8"), ((0.2, 0.3, 0.5), 3, "0.2x2+0.3x4+0.5x8")],
)
def test_the_merge_is_that_of_a_saved_average(
    shares: Sequence[float],
    format: int,
    words: str,
    pinned: Lock,
    hubmerge: Command,
    hub: Hub,
    tmp_path: Path,
) -> None:
    averaged = average_steps(pinned, shares)
    path, out = tmp_path / LOCK_FILE, tmp_path / "out"
    path.write_bytes(averaged.to_bytes())
    assert json.loads(path.read_bytes())["format"] == format
    result = hubmerge("merge", "--lock", path, "--out", out)
    assert result.code == 0, result.err
    first, second = averaged.pick().experts
    folders = [open_ref(hub, parse_ref(m.label)).folder for m in first.averaged]
    steps = [load_file(folder / WEIGHTS) for folder in folders]
    base = open_ref(hub, parse_ref(averaged.base.source.label)).checkpoint
    saved = tmp_path / "saved"
    saved.mkdir()
    for file in folders[-1].glob("*.json"):
        (saved / file.name).write_bytes(file.read_bytes())
    values = {}
    for name in steps[0]:
        start = base.read(name)
        changes = [
            share * (step[name] - start).astype(np.float64)
            for step, share in zip(steps, shares, strict=True)
        ]
        values[name] = np.asarray(start + sum(changes) / sum(shares)).astype(start.dtype)
    save_file(values, saved / WEIGHTS)
    other = open_ref(hub, parse_ref(second.label)).checkpoint
    chosen = method(averaged.method)
    experts = (Expert(open_checkpoint(saved), "a"), Expert(other, "b"))
    params = parse_params(chosen, averaged.pick().params)
    merge(MergePlan(base, experts, chosen, params), tmp_path / "expected")
    written, expected = load_file(out / WEIGHTS), load_file(tmp_path / "expected" / WEIGHTS)
    assert all(written[name].tobytes() == expected[name].tobytes() for name in expected)
    assert hubmerge("verify", out).code == 0
    assert f"the mean of steps {words}" in (out / "README.md").read_text()


def test_an_expert_of_weight_0_is_not_merged(
    pinned: Lock, hubmerge: Command, tmp_path: Path
) -> None:
    first, second = pinned.pick("last").experts
    lock = replace_last_pick(pinned, first, dataclasses.replace(second, weight=0.0))
    path, out = tmp_path / LOCK_FILE, tmp_path / "out"
    path.write_bytes(lock.to_bytes())
    assert hubmerge("merge", "--lock", path, "--out", out).code == 0
    words = [f"{key}={value}" for key, value in pinned.pick("last").params.items()]
    alone = tmp_path / "alone"
    result = hubmerge(
        "merge", first.label, "--method", pinned.method, "--out", alone,
        *(word for setting in words for word in ("--set", setting)),
    )  # fmt: skip
    assert result.code == 0, result.err
    assert (out / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes()
    assert hubmerge("verify", out).code == 0


def test_a_lock_that_averages_other_steps_is_refused(averaged: Lock) -> None:
    first, second = averaged.pick().experts
    others = dataclasses.replace(first, averaged=(first.averaged[-1], second))
    data = replace_last_pick(averaged, others, second).to_bytes()
    with pytest.raises(Exception, match="averages other steps"):
        parse_lock(data, "a.lock")
    unpinned = dataclasses.replace(first.averaged[0], sha="0" * 40)
    missing = dataclasses.replace(first, averaged=(unpinned, first.averaged[-1]))
    data = replace_last_pick(averaged, missing, second).to_bytes()
    with pytest.raises(Exception, match="averages a step that is not pinned"):
        parse_lock(data, "a.lock")


@pytest.mark.parametrize("share", [0.0, -0.5, 1e308])
def test_shares_that_are_none_are_refused(pinned: Lock, share: float) -> None:
    data = average_steps(pinned, (0.5, share, 1e308)).to_bytes()
    with pytest.raises(Exception, match="shares that are not above 0 and at most 1"):
        parse_lock(data, "a.lock")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 9}, "another step than its pin"),
        ({"licence": "mit-0"}, "another licence than its pin"),
        ({"weights": "0" * 64}, "another weights than its pin"),
    ],
)
def test_a_member_of_an_average_that_differs_from_its_pin_is_refused(
    averaged: Lock, change: dict[str, Any], message: str
) -> None:
    first, second = averaged.pick().experts
    members = (dataclasses.replace(first.averaged[0], **change), *first.averaged[1:])
    edited = dataclasses.replace(first, averaged=members)
    with pytest.raises(Exception, match=message):
        parse_lock(replace_last_pick(averaged, edited, second).to_bytes(), "a.lock")


def test_a_mean_with_the_digest_of_another_is_refused(averaged: Lock) -> None:
    """It seeds the masks of the mean and orders the sums, so another merge would be built."""
    first, second = averaged.pick().experts
    edited = dataclasses.replace(first, weights="0" * 64)
    with pytest.raises(Exception, match="a digest of weights that is not that of the mean"):
        parse_lock(replace_last_pick(averaged, edited, second).to_bytes(), "a.lock")


def test_a_step_that_is_averaged_twice_is_refused(averaged: Lock) -> None:
    first, second = averaged.pick().experts
    edited = dataclasses.replace(first, averaged=(first.averaged[0], *first.averaged))
    with pytest.raises(Exception, match="averages other steps"):
        parse_lock(replace_last_pick(averaged, edited, second).to_bytes(), "a.lock")


def shares_by_loss(lock: Lock, hub: Hub) -> list[float]:
    """The shares of the first expert's steps in inverse proportion to their training losses."""
    name = lock.pick("last").experts[0].name
    steps = sorted(
        (pin.source for pin in lock.experts if pin.source.name == name), key=lambda s: s.step or 0
    )
    losses = []
    for step in steps:
        manifest = open_ref(hub, parse_ref(step.label)).manifest
        assert manifest is not None
        losses.append(manifest.validation[-1].loss or 0.0)
    total = sum(1 / loss for loss in losses)
    return [round(1 / loss / total, 4) for loss in losses]


@pytest.mark.slow
def test_steps_are_weighted_by_their_loss_and_compared_with_an_earlier_lock(
    pinned: Lock, hub: Hub, hubmerge: Command, tmp_path: Path
) -> None:
    path, new = tmp_path / "old.lock", tmp_path / "new.lock"
    lock = average_steps(pinned, shares_by_loss(pinned, hub))
    path.write_bytes(lock.to_bytes())
    words = ("--target", lock.method, "--budget", "30", "--policy", "average-by-loss")
    result = hubmerge("select", *REPOS, "--against", path, *words, "--lock", new)
    assert result.code in (0, 4), result.err
    chosen = parse_lock(new.read_bytes(), "new.lock")
    assert chosen.pick("average-by-loss")
    earlier = chosen.pick("locked").experts[0]
    assert [member.key for member in earlier.averaged] == [
        member.key for member in lock.pick().experts[0].averaged
    ]
    assert earlier.shares == lock.pick().experts[0].shares
    assert earlier.weights == lock.pick().experts[0].weights


def test_an_earlier_lock_with_other_shares_is_refused(
    pinned: Lock, hubmerge: Command, tmp_path: Path
) -> None:
    path = tmp_path / "old.lock"
    path.write_bytes(average_steps(pinned, (0.1, 0.1, 0.8)).to_bytes())
    words = ("--target", pinned.method, "--budget", "30")
    result = hubmerge("select", *REPOS, "--against", path, *words, "--lock", tmp_path / "new.lock")
    assert result.code == 3, result.err
    assert "or by other shares" in result.err


def test_a_lock_without_averages_keeps_its_format(pinned: Lock) -> None:
    data = pinned.to_bytes()
    assert b"averaged" not in data
    assert json.loads(data)["format"] == 1
    assert parse_lock(data, "a.lock") == pinned


@pytest.mark.slow
def test_shares_that_do_not_follow_from_the_losses_are_a_problem_of_the_evidence(
    pinned: Lock, hubmerge: Command, tmp_path: Path
) -> None:
    """The other picks are measured all the same."""
    lock = average_steps(pinned, (0.1, 0.1, 0.8))
    rows = ROWS["validation"]
    picks = tuple(
        dataclasses.replace(pick, gain=None, stderr=stderr_of(pick.tasks, rows))
        for pick in lock.picks
    )
    tasks = tuple(dataclasses.replace(task, rows=rows) for task in lock.tasks)
    path = tmp_path / "a.lock"
    path.write_bytes(dataclasses.replace(lock, picks=picks, tasks=tasks, uniform=()).to_bytes())
    result = hubmerge("verify", path, "--evidence", "--json")
    assert result.code == 3
    problems = {check["what"]: check["problem"] for check in result.data}
    assert "by other shares" in problems["accuracy of last"]
    assert {"accuracy of uniform", "accuracy of coordinate"} <= problems.keys()
    assert "--against" not in result.err
