"""Keeping steps: a plan under a budget, applied with every check."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi, RepoFile
from safetensors.numpy import save_file

from hubmerge.errors import HubUnreachable, IntegrityError
from hubmerge.flows import retain as flow
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import Publication, ensure_repo, publish
from hubmerge.hub.resolve import resolve
from hubmerge.lock import Lock, LockedTask, Pick, Pin, Spent
from hubmerge.manifest import Manifest, Point, Source, files_digest
from hubmerge.opening.publication import seal
from hubmerge.opening.references import read_local_manifest
from hubmerge.refs import ModelRef
from hubmerge.retention.plan import parse_plan
from hubmerge.trials import Part, Rows, Trial, TrialLog
from tests.hub.conftest import tags
from tests.hub.proxy import lose_answer, proxied, status
from tests.journey.conftest import Command, World

OWN = {2: 0.5, 4: 0.7, 8: 0.9, 16: 0.8, 32: 0.8, 64: 0.8}
BASE = Source("hubmerge/tiny-clip@" + "b" * 12, "b" * 40, "d" * 64)
WEIGHTS = 400_000  # bytes of a step's weights, about
_numbers, _contents = itertools.count(1), itertools.count(1)


@pytest.fixture
def api(world: World) -> HfApi:
    return HfApi(endpoint=world.server.url, token=world.server.token)


@pytest.fixture
def hub(world: World, tmp_path: Path) -> Hub:
    return Hub(world.server.url, world.server.token, tmp_path / "cache", "the test Hub")


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> str:
    """The id of a new repository of six steps; early stopping ended it at step 64."""
    repo = f"keep/run{next(_numbers)}"
    ensure_repo(hub, repo)
    for step in OWN:
        folder = tmp_path / f"{repo.replace('/', '-')}-{step}"
        folder.mkdir()
        values = np.full(100_000, next(_contents), np.float32)
        save_file({"w": values}, folder / "model.safetensors")
        curve = tuple(Point(at, 0.5, OWN[at], 400, 1e-4) for at in OWN if at <= step)
        stopped = {"stopped": "early"} if step == 64 else {}
        seal(
            folder,
            Manifest(
                kind="expert", base=BASE, task="mini-cats@1", step=step, last_step=64,
                training=stopped, validation=curve, run="r" * 64,
            ),
        )  # fmt: skip
        manifest = read_local_manifest(folder)
        assert manifest is not None
        publish(hub, Publication(repo, folder, f"Step {step}", {"step": str(step)}, f"step{step}"))
    return repo


def lock_of(hub: Hub, repo: str, *steps: int) -> Lock:
    """A lock whose choice is the first of the steps; the others are picks of other policies."""
    pins, picks = [], []
    for step in steps:
        revision = resolve(hub, ModelRef(repo, revision=f"step{step}"))
        files = {"model.safetensors": hashlib.sha256(f"{repo}{step}".encode()).hexdigest()}
        source = Source(revision.label, revision.sha, files_digest(files), step)
        pins.append(Pin(f"{repo}@step{step}", source, files))
        name = "coordinate" if step == steps[0] else "last"
        picks.append(Pick(name, (source,), {}, 0.5, 0.01, {"mini-cats@1": 0.5}))
    files = {"model.safetensors": "e" * 64}
    base = dataclasses.replace(BASE, digest=files_digest(files))
    return Lock(
        base=Pin("hubmerge/tiny-clip", base, files), experts=tuple(pins),
        tasks=(LockedTask("mini-cats@1", None, 400),), method="ties", chosen="coordinate",
        picks=tuple(picks), swaps={}, uniform=(), seed=0, spent=Spent(1, 1), conclusive=True,
        rival=picks[-1].policy,
    )  # fmt: skip


def registered(world: World, lock: Lock) -> Path:
    """The lock where `hubmerge select` keeps its copy."""
    data = lock.to_bytes()
    path = world.home / "locks" / f"{hashlib.sha256(data).hexdigest()[:12]}.lock"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def kept(said: Any) -> dict[str, list[str]]:
    return {one["name"]: one["reasons"] for one in said["verdicts"] if one["keep"]}


def dropped(said: Any) -> set[str]:
    return {one["name"] for one in said["verdicts"] if not one["keep"]}


def planned(hubmerge: Command, folder: Path, *words: str) -> Path:
    path = folder / "plan.json"
    said = hubmerge("retain", *words, "--plan", str(path))
    assert said.code == 0, said.err
    return path


def test_without_a_budget_only_what_has_a_reason_stays(run: str, hubmerge: Command) -> None:
    said = hubmerge("retain", run, "--json").data
    assert kept(said) == {
        "main": ["no step"], "step8": ["best expert"], "step64": ["early stop", "last"],
    }  # fmt: skip
    assert dropped(said) == {"step2", "step4", "step16", "step32"}
    assert said["totals"]["bytes_dropped"] == pytest.approx(4 * WEIGHTS, rel=0.1)
    assert said["regrets"] == []


def test_a_table_tells_why(run: str, hubmerge: Command) -> None:
    said = hubmerge("retain", run)
    assert said.code == 0
    assert "best expert" in said.out
    assert "in no measured merge" in said.out
    assert "assuming $0.012 per GB and month" in said.out
    assert "not measured" in said.out


def test_the_budget_is_filled_by_least_regret(
    run: str, hubmerge: Command, hub: Hub, world: World, api: HfApi
) -> None:
    shas = tags(api, run)
    accuracies = {"step2": 2, "step4": 7, "step8": 5, "step16": 9, "step32": 6}
    TrialLog(world.home / "trials.jsonl").append(
        Trial(f"{run}-{name}", "base", (Part(shas[name]),), "ties", {}, "validation",
              {"mini-cats@1": Rows("1" * right + "0" * (10 - right), 10)})
        for name, right in accuracies.items()
    )  # fmt: skip
    said = hubmerge("retain", run, "--target", "ties", "--budget", "1750kB", "--json").data
    assert kept(said)["step16"] == ["best for ties"]
    assert kept(said)["step4"][0] == "fits the budget"
    assert dropped(said) == {"step2", "step32"}
    assert [(one["target"], one["regret"]) for one in said["regrets"]] == [("ties", 0.0)]
    assert said["totals"]["bytes_kept"] <= 1_750_000


def test_a_budget_below_what_must_stay_is_no_plan(
    run: str, hubmerge: Command, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    said = hubmerge("retain", run, "--budget", "500kB", "--plan", path)
    assert said.code == 1
    assert "more than --budget 500kB" in said.err
    assert "best expert" in said.out
    assert not path.exists()


def test_what_a_lock_references_stays(
    run: str, hubmerge: Command, hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / "mine.lock"
    path.write_bytes(lock_of(hub, run, 2, 16).to_bytes())
    said = hubmerge("retain", run, "--lock", path, "--json").data
    name = f"lock {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    assert kept(said)["step2"] == [f"choice of {name}"]
    assert kept(said)["step16"] == [f"pick last of {name}"]
    # Other files of this run may have left locks of their own in the world's home.
    assert hashlib.sha256(path.read_bytes()).hexdigest() in said["locks"]


def test_applying_deletes_the_dropped_names_and_nothing_else(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    before = tags(api, run)
    plan = planned(hubmerge, tmp_path, run)
    assert tags(api, run) == before
    said = hubmerge("retain", "--apply", plan, "--yes", "--json")
    assert said.code == 0, said.err
    assert set(said.data["deleted"]) == {f"{run}@step{step}" for step in (2, 4, 16, 32)}
    assert "frees nothing" in said.err
    assert tags(api, run) == {name: before[name] for name in ("step8", "step64")}
    # Reachable from main, so still to be had by its commit.
    assert fetch_weights(api, run, before["step4"])
    again = hubmerge("retain", "--apply", plan, "--yes", "--json")
    assert (again.code, again.data["deleted"]) == (0, [])


def test_the_same_plan_is_the_same_bytes(run: str, hubmerge: Command, tmp_path: Path) -> None:
    one = planned(hubmerge, tmp_path, run).read_bytes()
    assert planned(hubmerge, tmp_path, run, run).read_bytes() == one
    assert parse_plan(one, "it").to_bytes() == one


def test_nobody_is_asked_where_nobody_is(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    plan = planned(hubmerge, tmp_path, run)
    said = hubmerge("retain", "--apply", plan)
    assert said.code == 2
    assert "--yes" in said.err
    assert len(tags(api, run)) == len(OWN)


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 6), (b"y\n", 2)])
def test_a_terminal_is_asked(
    run: str, hubmerge: Command, api: HfApi, world: World, tmp_path: Path, answer: bytes, left: int
) -> None:
    plan = planned(hubmerge, tmp_path, run)
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    environment = {**os.environ, "HUBMERGE_HOME": str(world.home), "HUBMERGE_HUB": "local"}
    done = subprocess.run(
        [sys.executable, "-m", "hubmerge", "retain", "--apply", str(plan), "--quiet"],
        stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment, timeout=60,
    )  # fmt: skip
    assert done.returncode == (1 if left == 6 else 0)
    assert f"{run}@step16" in os.read(ours, 10_000).decode()
    assert len(tags(api, run)) == left
    for end in (ours, theirs):
        os.close(end)


def test_a_moved_tag_is_refused_with_both_shas(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    plan = planned(hubmerge, tmp_path, run)
    old, new = tags(api, run)["step4"], tags(api, run)["step2"]
    api.delete_tag(run, tag="step4")
    api.create_tag(run, tag="step4", revision=new)
    said = hubmerge("retain", "--apply", plan, "--yes")
    assert said.code == 3
    assert old in said.err
    assert new in said.err
    assert len(tags(api, run)) == len(OWN)


def test_a_kept_tag_that_is_gone_is_refused(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    plan = planned(hubmerge, tmp_path, run)
    api.delete_tag(run, tag="step8")
    said = hubmerge("retain", "--apply", plan, "--yes")
    assert said.code == 3
    assert "gone" in said.err


def test_a_lock_that_appeared_since_is_heeded(
    run: str, hubmerge: Command, hub: Hub, api: HfApi, world: World, tmp_path: Path
) -> None:
    plan = planned(hubmerge, tmp_path, run)
    path = registered(world, lock_of(hub, run, 4))
    try:
        said = hubmerge("retain", "--apply", plan, "--yes")
    finally:
        path.unlink()
    assert said.code == 3
    assert f"{run}@step4 ({tags(api, run)['step4']}) is the choice of lock" in said.err
    assert len(tags(api, run)) == len(OWN)


def test_a_plan_needs_the_locks_that_it_heeded(
    run: str, hubmerge: Command, hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / "mine.lock"
    path.write_bytes(lock_of(hub, run, 4).to_bytes())
    plan = planned(hubmerge, tmp_path, run, "--lock", str(path))
    said = hubmerge("retain", "--apply", plan, "--yes")
    assert said.code == 3
    assert "name it with --lock" in said.err
    assert hubmerge("retain", "--apply", plan, "--yes", "--lock", path).code == 0


def test_an_unreadable_lock_stops_everything(run: str, hubmerge: Command, world: World) -> None:
    path = world.home / "locks" / "broken.lock"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    try:
        assert hubmerge("retain", run).code == 3
    finally:
        path.unlink()


def edited(path: Path, change: Mapping[str, Any], sealed: bool) -> None:
    """Change the verdicts of a plan by hand; `sealed` gives it the digest that it should have."""
    plan = parse_plan(path.read_bytes(), "it")
    verdicts = [dataclasses.replace(one, **change) for one in plan.verdicts]
    if sealed:
        path.write_bytes(dataclasses.replace(plan, verdicts=tuple(verdicts)).to_bytes())
    else:
        said = json.loads(path.read_bytes())
        path.write_text(json.dumps({**said, "verdicts": list(map(dataclasses.asdict, verdicts))}))


def test_an_edited_plan_is_refused(run: str, hubmerge: Command, api: HfApi, tmp_path: Path) -> None:
    plan = planned(hubmerge, tmp_path, run)
    edited(plan, {"keep": False}, sealed=False)
    said = hubmerge("retain", "--apply", plan, "--yes")
    assert said.code == 3
    assert "digest" in said.err
    edited(planned(hubmerge, tmp_path, run), {"keep": False}, sealed=True)
    said = hubmerge("retain", "--apply", plan, "--yes")
    assert said.code == 3
    assert "main is no step" in said.err
    assert len(tags(api, run)) == len(OWN)


def test_not_even_a_forged_plan_deletes_what_a_lock_needs(
    run: str, hubmerge: Command, hub: Hub, api: HfApi, world: World, tmp_path: Path
) -> None:
    path = registered(world, lock_of(hub, run, 4, 16))
    try:
        made = planned(hubmerge, tmp_path, run)
        plan = parse_plan(made.read_bytes(), "it")
        forged = tuple(dataclasses.replace(one, keep=one.name == "main") for one in plan.verdicts)
        made.write_bytes(dataclasses.replace(plan, verdicts=forged, locks=()).to_bytes())
        said = hubmerge("retain", "--apply", made, "--yes", "--purge")
    finally:
        path.unlink()
    assert said.code == 3
    assert len(tags(api, run)) == len(OWN)


def fetch_weights(api: HfApi, repo: str, revision: str) -> bool:
    folder = api.snapshot_download(
        repo, revision=revision, local_dir=f"{os.environ['HOME']}/{revision}"
    )
    return (Path(folder) / "model.safetensors").is_file()


def test_purging_frees_what_only_the_dropped_list(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    before, stored = tags(api, run), sum(file.size for file in api.list_lfs_files(run))
    history = [one.commit_id for one in api.list_repo_commits(run)]
    plan = planned(hubmerge, tmp_path, run)
    # Tagged by somebody for himself: not ours to strand.
    api.create_tag(run, tag="mine", revision=before["step2"])
    said = hubmerge("retain", "--apply", plan, "--yes", "--purge", "--json")
    assert said.code == 0, said.err
    assert "can no longer be loaded" in said.err
    assert said.data["bytes_freed"] == pytest.approx(3 * WEIGHTS, rel=0.05)
    left = sum(file.size for file in api.list_lfs_files(run))
    assert stored - left == said.data["bytes_freed"]
    for revision in ("step8", "step64", "main", "mine"):
        assert fetch_weights(api, run, revision)
    # No commit has another SHA than before: every lock and every tag still means what it meant.
    assert [one.commit_id for one in api.list_repo_commits(run)] == history
    with pytest.raises(Exception, match="404"):
        fetch_weights(api, run, before["step4"])


def test_a_purge_spares_contents_of_a_lock_whose_tag_moved(
    run: str, hubmerge: Command, hub: Hub, api: HfApi, world: World, tmp_path: Path
) -> None:
    before = tags(api, run)
    lock = lock_of(hub, run, 4)
    api.delete_tag(run, tag="step4")
    plan = parse_plan(planned(hubmerge, tmp_path, run).read_bytes(), "it")
    tree = api.list_repo_tree(run, revision=before["step4"])
    large = {one.lfs.sha256: one.size for one in tree if isinstance(one, RepoFile) and one.lfs}
    gone = dataclasses.replace(plan.dropped[0], name="step4", sha=before["step4"], contents=large)
    stale = dataclasses.replace(plan, verdicts=(*plan.verdicts, gone))
    assert flow._stranded(hub, stale, {"l": lock}, ())[run].keys().isdisjoint(gone.contents)
    assert not flow._stranded(hub, stale, {}, ())[run].keys().isdisjoint(gone.contents)


def test_killed_in_between_the_same_command_ends_the_same(
    run: str, hubmerge: Command, hub: Hub, world: World, api: HfApi, tmp_path: Path
) -> None:
    made = planned(hubmerge, tmp_path, run)
    checked = flow.check(hub, parse_plan(made.read_bytes(), "it"), world.home, ())
    with proxied(hub.endpoint) as proxy:
        proxy.fail("DELETE .*/tag/step2", lose_answer)
        proxy.fail("DELETE .*/tag/step16", status(500), times=9)
        behind = dataclasses.replace(hub, endpoint=proxy.url, deadline_s=5.0)
        with pytest.raises(HubUnreachable):
            flow.carry_out(behind, checked, True, silent)
    assert set(tags(api, run)) == {"step8", "step16", "step32", "step64"}
    said = hubmerge("retain", "--apply", made, "--yes", "--purge", "--json")
    assert said.code == 0, said.err
    assert said.data["bytes_freed"] == pytest.approx(4 * WEIGHTS, rel=0.05)
    assert set(tags(api, run)) == {"step8", "step64"}
    again = hubmerge("retain", "--apply", made, "--yes", "--purge", "--json")
    assert again.data == {"deleted": [], "bytes_freed": 0}


def test_a_tag_that_moves_at_the_last_moment_is_left_alone(
    run: str, hubmerge: Command, hub: Hub, world: World, api: HfApi, tmp_path: Path
) -> None:
    made = planned(hubmerge, tmp_path, run)
    checked = flow.check(hub, parse_plan(made.read_bytes(), "it"), world.home, ())
    api.delete_tag(run, tag="step2")
    api.create_tag(run, tag="step2", revision="step8")
    with pytest.raises(IntegrityError, match="step2") as refused:
        flow.carry_out(hub, checked, False, silent)
    assert "left alone" in refused.value.hint
    assert len(tags(api, run)) == len(OWN)


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("demo/mnist", "--as-delta"), "--to another"),
        (("demo/mnist", "--as-delta", "--to", "demo/mnist"), "both whole and as a delta"),
        (("demo/mnist", "--as-delta", "--to", "keep/x", "--steps", "4,five"), "no list of steps"),
        (("demo/mnist", "--as-delta", "--to", "keep/x", "--steps", "5"), "has no step 5"),
        (("demo/mnist", "--to", "keep/x"), "--as-delta"),
        (("demo/mnist", "--yes"), "go with --apply"),
        (("demo/mnist", "--apply", "plan.json"), "Say what to retain"),
        ((), "Say what to retain"),
        (("--apply", "no-plan.json"), "no plan no-plan.json"),
        (("demo/mnist", "--budget", "much"), "is no budget"),
        (("demo/mnist", "--target", "tis"), "Did you mean ties?"),
        (("demo/mnist", "--lock", "no.lock"), "no lock no.lock"),
    ],
)
def test_what_cannot_be_meant_is_said(hubmerge: Command, words: tuple[str, ...], told: str) -> None:
    said = hubmerge("retain", *words)
    assert said.code == 2
    assert told in said.err
