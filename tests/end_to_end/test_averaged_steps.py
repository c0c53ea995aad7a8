"""A lock that averages steps of an expert, or leaves an expert out, and the merge built from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

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
from hubmerge.refs import parse_ref
from hubmerge.source import Source
from hubmerge.weights.averaged import averaged_key
from hubmerge.weights.checkpoint import open_checkpoint
from tests.end_to_end.conftest import WEIGHTS, Command


def replace_last_pick(lock: Lock, *experts: Source) -> Lock:
    """A lock whose pick of the last steps has these experts, and is chosen."""
    pick = dataclasses.replace(lock.pick("last"), experts=experts)
    others = tuple(pick for pick in lock.picks if pick.policy != "last")
    return dataclasses.replace(lock, picks=(pick, *others), chosen="last", conclusive=False)


@pytest.fixture
def averaged(pinned: Lock) -> Lock:
    """The mean of steps 2, 4 and 8 of the first expert, and step 8 of the second."""
    first, second = pinned.pick("last").experts
    members = [pin.source for pin in pinned.experts if pin.source.name == first.name]
    members.sort(key=lambda source: source.step or 0)
    weights = averaged_key([member.content_key for member in members])
    mean = dataclasses.replace(first, averaged=tuple(members), weights=weights)
    return replace_last_pick(pinned, mean, second)


def test_the_merge_is_that_of_a_saved_average(
    averaged: Lock, hubmerge: Command, hub: Hub, tmp_path: Path
) -> None:
    path, out = tmp_path / LOCK_FILE, tmp_path / "out"
    path.write_bytes(averaged.to_bytes())
    assert json.loads(path.read_bytes())["format"] == 2
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
        changes = [(step[name] - start).astype(np.float64) for step in steps]
        values[name] = np.asarray(start + sum(changes) / 3).astype(start.dtype)
    save_file(values, saved / WEIGHTS)
    other = open_ref(hub, parse_ref(second.label)).checkpoint
    chosen = method(averaged.method)
    experts = (Expert(open_checkpoint(saved), "a"), Expert(other, "b"))
    params = parse_params(chosen, averaged.pick().params)
    merge(MergePlan(base, experts, chosen, params), tmp_path / "expected")
    written, expected = load_file(out / WEIGHTS), load_file(tmp_path / "expected" / WEIGHTS)
    assert all(written[name].tobytes() == expected[name].tobytes() for name in expected)
    assert hubmerge("verify", out).code == 0
    assert "the mean of steps 2+4+8" in (out / "README.md").read_text()


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


def test_a_lock_without_averages_keeps_its_format(pinned: Lock) -> None:
    data = pinned.to_bytes()
    assert b"averaged" not in data
    assert json.loads(data)["format"] == 1
    assert parse_lock(data, "a.lock") == pinned
