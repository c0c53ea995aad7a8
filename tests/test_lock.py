"""hubmerge.lock: writing and reading, and rejecting spoiled locks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge import lock_file as module
from hubmerge.errors import IntegrityError, UnknownName, UsageError
from hubmerge.kinds import MOE
from hubmerge.lock import Lock, LockedTask, Pick, Pin, SelectionCost, Swap, UniformPoint
from hubmerge.lock_file import parse_lock, read_lock_bytes
from hubmerge.manifest import files_digest
from hubmerge.refs import ModelRef
from hubmerge.source import Source
from tests.locks import stderr_of

SHARES = st.floats(0, 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 10**12)
WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=12)
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | NUMBERS | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner), max_leaves=6
)
HEX = "0123456789abcdef"


def pin(
    repo: str,
    sha: str,
    step: int | None,
    revision: str | None,
    digest: str,
    folder: str | None = None,
) -> Pin:
    files = {"model.safetensors": digest, "config.json": digest[::-1]}
    name = f"{repo}@{revision or sha[:12]}"
    requested = f"{repo}@{revision}" if revision else repo
    if folder:
        name, requested = f"{name}/{folder}", f"hf://{requested}/{folder}"
    source = Source(name, sha, files_digest(files), step, f"{repo}@1", folder=folder)
    return Pin(requested, source, files)


PINS = st.builds(
    pin,
    st.sampled_from(["o/a", "o/b", "demo/mnist"]),
    st.text(HEX, min_size=40, max_size=40),
    st.none() | COUNTS,
    st.none() | st.sampled_from(["step4", "global_step0008", "main"]),
    st.text(HEX, min_size=64, max_size=64),
    st.none() | st.just("checkpoint-4"),
)


@st.composite
def locks(draw: st.DrawFn) -> Lock:
    experts = draw(st.lists(PINS, min_size=1, max_size=4, unique_by=lambda p: p.source.sha))
    tasks = [
        LockedTask(name, draw(st.none() | WORDS), draw(st.integers(1, 10**6)))
        for name in draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))
    ]
    names = draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))
    picks = tuple(draw(pick(name, experts, tasks)) for name in names)
    swap = st.builds(Swap, WORDS, WORDS, COUNTS, st.none() | SHARES, SHARES, st.booleans())
    swaps = st.dictionaries(
        st.sampled_from([task.id for task in tasks]), st.lists(swap, max_size=2).map(tuple)
    )
    method = draw(WORDS | st.just(MOE))
    return Lock(
        base=draw(PINS),
        experts=tuple(experts),
        tasks=tuple(tasks),
        method=method,
        chosen=draw(st.sampled_from(names)),
        rival=draw(st.sampled_from(names)),
        picks=picks,
        swaps={} if method != MOE else draw(swaps),
        uniform=tuple(
            UniformPoint(step, draw(SHARES), draw(NUMBERS))
            for step in sorted(draw(st.sets(COUNTS, max_size=2)))
        ),
        seed=draw(COUNTS),
        spent=SelectionCost(10**12, draw(COUNTS)),
        conclusive=False,
        budget=draw(st.none() | WORDS),
        versions=draw(st.dictionaries(WORDS, WORDS, max_size=2)),
    )


@st.composite
def pick(draw: st.DrawFn, policy: str, experts: list[Pin], tasks: list[LockedTask]) -> Pick:
    """A pick whose numbers follow from its accuracies, which are shares of the rows."""
    chosen = st.sampled_from(experts).flatmap(
        lambda pin: st.builds(
            lambda w, k, i: dataclasses.replace(pin.source, weight=w, keep=k, intruders=i),
            NUMBERS, NUMBERS, NUMBERS,
        )
    )  # fmt: skip
    right = {task.id: draw(st.integers(0, task.rows)) / task.rows for task in tasks}
    spread = math.fsum(right[t.id] * (1 - right[t.id]) / t.rows for t in tasks)
    return Pick(
        policy=policy,
        experts=tuple(draw(st.lists(chosen, min_size=len(tasks), max_size=len(tasks)))),
        params=draw(st.dictionaries(WORDS, VALUES, max_size=3)),
        accuracy=math.fsum(right.values()) / len(tasks),
        stderr=math.sqrt(spread) / len(tasks),
        tasks=right,
        evaluations=draw(COUNTS),
    )


def make_lock() -> Lock:
    """A lock of two experts at two steps, small enough to spoil by hand."""
    pins = [
        pin(f"o/{name}", f"{name}{step}".ljust(40, "0"), step, f"step{step}", f"{step}" * 64)
        for name in "ab"
        for step in (4, 8)
    ]
    tasks = {"a@1": 0.5, "b@1": 0.25}

    def pick_of(policy: str, *experts: Pin) -> Pick:
        sources = tuple(pin.source for pin in experts)
        gain = (0.0, 0.0, 0.0) if policy == "last" else (0.05, 0.01, 0.09)
        shares = {task: share + gain[0] for task, share in tasks.items()}
        return Pick(
            policy, sources, {"density": 0.2}, 0.375 + gain[0], stderr_of(shares, 100), shares,
            gain, 3,
        )  # fmt: skip

    return Lock(
        base=pin("o/base", "b" * 40, None, None, "d" * 64),
        experts=tuple(pins),
        tasks=tuple(LockedTask(task, None, 100) for task in tasks),
        method="ties",
        chosen="coordinate",
        picks=(pick_of("last", pins[1], pins[3]), pick_of("coordinate", pins[0], pins[3])),
        swaps={},
        uniform=(UniformPoint(4, 0.5, 0.1),),
        seed=0,
        spent=SelectionCost(6, 60),
        conclusive=True,
    )


Change = Callable[[dict[str, Any]], object]


def parse_changed(change: Change) -> str:
    """The message of the error for a changed lock."""
    fields = json.loads(make_lock().to_bytes())
    change(fields)
    with pytest.raises(IntegrityError) as error:
        parse_lock(json.dumps(fields).encode(), "the.lock")
    assert error.value.exit_code == 3
    assert "the.lock" in error.value.message
    return error.value.message


@given(locks())
@settings(max_examples=40)
def test_a_lock_is_read_as_it_was_written(lock: Lock) -> None:
    data = lock.to_bytes()
    assert parse_lock(data, "here") == lock
    assert parse_lock(data, "here").to_bytes() == data


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_invalid_data_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"not a valid lock|knows 1"):
        parse_lock(data, "the.lock")


def test_the_chosen_pick_is_the_default() -> None:
    lock = make_lock()
    assert lock.pick().policy == "coordinate"
    assert [expert.step for expert in lock.pick("last").experts] == [8, 8]
    with pytest.raises(UnknownName) as error:
        lock.pick("cordinate")
    assert error.value.hint == "Did you mean coordinate?"


def test_two_folders_of_one_commit_are_two_experts() -> None:
    first, second = (pin("o/a", "a" * 40, n, None, "4" * 64, f"checkpoint-{n}") for n in (4, 8))
    pick = dataclasses.replace(make_lock().picks[0], experts=(first.source, second.source))
    lock = dataclasses.replace(
        make_lock(),
        experts=(first, second),
        picks=(pick,),
        chosen="last",
        rival="last",
        conclusive=False,
    )
    assert parse_lock(lock.to_bytes(), "here").pin(second.source) == second


@pytest.mark.parametrize(
    ("requested", "ref"),
    [
        ("o/a", ModelRef("o/a")),
        ("o/a@step4", ModelRef("o/a", revision="step4")),
        ("o/a@stage1/step4", ModelRef("o/a", revision="stage1/step4")),
        ("hf://o/a@main/checkpoint-4", ModelRef("o/a", None, "main", "checkpoint-4")),
    ],
)
def test_a_requested_name_is_never_a_local_folder(
    requested: str, ref: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("o/a", "o/a@step4"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Pin(requested, Source("o/a@x", "a" * 40, "d" * 64), {}).ref == ref


# References outside repositories, and names that leave their folder.
@pytest.mark.parametrize(
    "requested",
    [
        "/etc/passwd", "./o/a", "../o/a", "~/o/a", "file:///etc/passwd", "http://127.0.0.1:1/o/a",
        "https://evil.example/o/a", "hf://file:///etc", "hf:///etc/passwd", "o/b@step4", "o/a@",
        "o/a@../../x", "o/a@-rf", "o/a\n@step4", "", "o", "hf://o/a@step4/../../x", "C:\\x",
    ],
)  # fmt: skip
def test_a_lock_names_only_its_repositories(requested: str) -> None:
    parse_changed(lambda lock: lock["experts"][0].update(requested=requested))
    parse_changed(lambda lock: lock["base"].update(requested=requested))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../b", "a\\b", "-rf", "a//b", "x\n", "", "a/./b"]
)
def test_a_file_stays_in_its_folder(name: str) -> None:
    def change(lock: dict[str, Any]) -> None:
        expert = lock["experts"][0]
        expert["files"] = {name: "4" * 64}
        expert["source"]["digest"] = files_digest(expert["files"])

    assert "path" in parse_changed(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lock: lock["experts"].pop(0), "'coordinate' names an expert that is not pinned"),
        (lambda lock: lock["experts"][0]["source"].update(sha="main"), "not pinned to a commit"),
        (lambda lock: lock["experts"][0]["source"].update(sha="A" * 40), "not pinned to a commit"),
        (lambda lock: lock["experts"][0]["source"].update(last_sha="x"), "is not a commit"),
        (
            lambda lock: lock["experts"][0]["source"].update(digest="4" * 64),
            "do not match its digest",
        ),
        (lambda lock: lock["experts"][0]["source"].update(folder="../x"), "not a path inside"),
        (lambda lock: lock["experts"][0].update(files={}), "without a SHA-256"),
        (lambda lock: lock["experts"][0]["files"].update(x="0"), "without a SHA-256"),
        (lambda lock: lock["experts"][0]["files"].update(x="0" * 64), "do not match its digest"),
        (lambda lock: lock["base"]["files"].update(x="0" * 64), "do not match its digest"),
        (lambda lock: lock["picks"][1]["experts"].pop(), "1 experts for 2 tasks"),
        (lambda lock: lock["picks"][1]["experts"][0].update(label="o/z@step4"), "another label"),
        (lambda lock: lock["picks"][1]["tasks"].update(c=0.5), "'c', which is not a task"),
        (lambda lock: lock["picks"].append(lock["picks"][0]), "pick 'last' is there 2 times"),
        (lambda lock: lock["tasks"][1].update(id="a@1"), "task 'a@1' is there 2 times"),
        (lambda lock: lock.update(chosen="best"), "no pick 'best'"),
        (lambda lock: lock.update(rival="\x1b[31m"), "no pick '\\x1b[31m'"),
        (lambda lock: lock.pop("picks"), "picks is missing"),
        (lambda lock: lock.update(seed="0"), "seed"),
        (lambda lock: lock.update(format=4), "format 4"),
        (lambda lock: lock["picks"][0].update(accuracy=1.5), "accuracy"),
    ],
)
def test_a_changed_lock_is_refused(change: Change, message: str) -> None:
    assert message in parse_changed(change)


def test_all_problems_are_raised_at_once() -> None:
    def change(lock: dict[str, Any]) -> None:
        lock["experts"][0]["requested"] = "/etc"
        lock["chosen"] = "best"

    assert "2 problems" in parse_changed(change)


def test_unknown_keys_are_ignored() -> None:
    fields = json.loads(make_lock().to_bytes())
    for part in (fields, fields["base"], fields["experts"][0]["source"], fields["picks"][0]):
        part |= {"endpoint": "http://evil.example", "token": "t", "trust_remote_code": True}
    assert parse_lock(json.dumps(fields).encode(), "here") == make_lock()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": 0', '"seed": 0, "seed": 1'),
        ('"density": 0.2', '"density": 0.2, "density": 0.9'),
        ('"config.json"', '"model.safetensors"'),
        ('"weight": 1.0', '"weight": NaN'),
        ('"weight": 1.0', '"weight": Infinity'),
        ('"weight": 1.0', '"weight": 1e999'),
        ('"density": 0.2', '"density": -Infinity'),
        ('"seed": 0', '"seed": 1' + "0" * 5000),
    ],
)
def test_json_that_readers_may_read_differently_is_refused(old: str, new: str) -> None:
    text = make_lock().to_bytes().decode()
    assert old in text
    with pytest.raises(IntegrityError, match="not a valid lock"):
        parse_lock(text.replace(old, new, 1).encode(), "here")


@pytest.mark.parametrize("data", [b"[" * 10**6, b'{"a":' * 10**5, b"\xff\xfe", b"", b"null", b"[]"])
def test_malformed_json_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a valid lock"):
        parse_lock(data, "here")


def test_a_huge_file_is_not_read_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 100)
    path = tmp_path / "hubmerge.lock"
    path.write_bytes(b" " * 1000)
    assert len(read_lock_bytes(path)) == 101
    with pytest.raises(IntegrityError, match="larger than 100 bytes"):
        parse_lock(read_lock_bytes(path), "here")
    with pytest.raises(UsageError, match="There is no lock"):
        read_lock_bytes(tmp_path)
