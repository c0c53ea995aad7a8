"""`hubmerge retain`: a plan under a budget, and applying it."""

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
from hubmerge.flows.published_uses import PublishedUses
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import resolve
from hubmerge.lock import Lock, LockedTask, Pick, Pin, SelectionCost
from hubmerge.manifest import Manifest, files_digest
from hubmerge.opening.publication import finalize_folder
from hubmerge.refs import ModelRef
from hubmerge.retention.plan import parse_plan
from hubmerge.source import Source
from hubmerge.training_curve import ValidationPoint
from hubmerge.trials import Part, RowResults, Trial, TrialLog
from tests.end_to_end.conftest import Command, LocalHub
from tests.hub.conftest import tags
from tests.hub.proxy import lose_response, run_proxy, status
from tests.locks import commit_and_tag

ACCURACIES = {2: 0.5, 4: 0.7, 8: 0.9, 16: 0.8, 32: 0.8, 64: 0.8}
BASE = Source("hubmerge/tiny-clip@" + "b" * 12, "b" * 40, "d" * 64)
WEIGHTS = 400_000  # bytes of the weights of a step, about
_numbers, _contents = itertools.count(1), itertools.count(1)


@pytest.fixture
def hub(local_hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(
        local_hub.server.url, lambda: local_hub.server.token, tmp_path / "cache", "the test Hub"
    )


@pytest.fixture
def run(api: HfApi, tmp_path: Path) -> str:
    """The id of a new repository with six steps; early stopping ended the run at step 64."""
    return publish_run(api, tmp_path)


@pytest.fixture(scope="module")
def fixed_run(api: HfApi, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Such a repository for all tests that do not change it."""
    return publish_run(api, tmp_path_factory.mktemp("fixed"))


def publish_run(api: HfApi, scratch: Path) -> str:
    repo = f"keep/run{next(_numbers)}"
    api.create_repo(repo)
    for step in ACCURACIES:
        folder = scratch / f"{repo.replace('/', '-')}-{step}"
        folder.mkdir()
        values = np.full(100_000, next(_contents), np.float32)
        save_file({"w": values}, folder / "model.safetensors")
        curve = tuple(
            ValidationPoint(n, 0.5, ACCURACIES[n], 400, 1e-4) for n in ACCURACIES if n <= step
        )
        stopped = {"stopped": "early"} if step == 64 else {}
        finalize_folder(
            folder,
            Manifest(
                kind="expert", base=BASE, task="mini-cats@1", step=step, last_step=64,
                training=stopped, validation=curve, run="r" * 64,
            ),
        )  # fmt: skip
        commit_and_tag(api, repo, step, folder)
    return repo


def lock_of(hub: Hub, repo: str, *steps: int) -> Lock:
    """A lock that chose the first of the steps; the others are picks of other policies."""
    pins, picks = [], []
    for step in steps:
        revision = resolve(hub, ModelRef(repo, revision=f"step{step}"))
        files = {"model.safetensors": hashlib.sha256(f"{repo}{step}".encode()).hexdigest()}
        source = Source(revision.label, revision.sha, files_digest(files), step)
        pins.append(Pin(f"{repo}@step{step}", source, files))
        name = "coordinate" if step == steps[0] else "last"
        picks.append(Pick(name, (source,), {}, 0.5, 0.025, {"mini-cats@1": 0.5}))
    files = {"model.safetensors": "e" * 64}
    base = dataclasses.replace(BASE, digest=files_digest(files))
    return Lock(
        base=Pin("hubmerge/tiny-clip", base, files), experts=tuple(pins),
        tasks=(LockedTask("mini-cats@1", None, 400),), method="ties", chosen="coordinate",
        picks=tuple(picks), swaps={}, uniform=(), seed=0, spent=SelectionCost(1, 1),
        conclusive=False, rival=picks[-1].policy,
    )  # fmt: skip


def register_lock(local_hub: LocalHub, lock: Lock) -> Path:
    """Write the lock where `hubmerge select` keeps its copies."""
    data = lock.to_bytes()
    path = local_hub.home / "locks" / f"{hashlib.sha256(data).hexdigest()[:12]}.lock"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def kept_reasons(plan: Any) -> dict[str, list[str]]:
    return {item["name"]: item["reasons"] for item in plan["verdicts"] if item["keep"]}


def dropped_names(plan: Any) -> set[str]:
    return {item["name"] for item in plan["verdicts"] if not item["keep"]}


def write_plan(hubmerge: Command, folder: Path, *words: str) -> Path:
    path = folder / "plan.json"
    result = hubmerge("retain", *words, "--plan", str(path))
    assert result.code == 0, result.err
    return path


def test_without_a_budget_only_needed_steps_stay(fixed_run: str, hubmerge: Command) -> None:
    plan = hubmerge("retain", fixed_run, "--json").data
    assert kept_reasons(plan) == {
        "main": ["no step"], "step8": ["best expert"], "step64": ["early stop", "last"],
    }  # fmt: skip
    assert dropped_names(plan) == {"step2", "step4", "step16", "step32"}
    assert plan["totals"]["bytes_dropped"] == pytest.approx(4 * WEIGHTS, rel=0.1)
    assert plan["regrets"] == []


def test_the_table_shows_reasons(fixed_run: str, hubmerge: Command) -> None:
    result = hubmerge("retain", fixed_run)
    assert result.code == 0
    assert "best expert" in result.out
    assert "in no measured merge" in result.out
    assert "assuming $0.012 per GB and month" in result.out
    assert "not measured" in result.out


def test_the_budget_keeps_the_steps_of_least_regret(
    run: str, hubmerge: Command, hub: Hub, local_hub: LocalHub, api: HfApi
) -> None:
    shas = tags(api, run)
    accuracies = {"step2": 2, "step4": 7, "step8": 5, "step16": 9, "step32": 6}
    TrialLog(local_hub.home / "trials.jsonl").append(
        Trial(f"{run}-{name}", "base", (Part(shas[name]),), "ties", {}, "validation",
              {"mini-cats@1": RowResults("1" * right + "0" * (10 - right), 10)})
        for name, right in accuracies.items()
    )  # fmt: skip
    plan = hubmerge("retain", run, "--target", "ties", "--budget", "1750kB", "--json").data
    assert kept_reasons(plan)["step16"] == ["best for ties"]
    assert kept_reasons(plan)["step4"][0] == "fits the budget"
    assert dropped_names(plan) == {"step2", "step32"}
    assert [(item["target"], item["regret"]) for item in plan["regrets"]] == [("ties", 0.0)]
    assert plan["totals"]["bytes_kept"] <= 1_750_000


def test_a_budget_below_what_must_stay_writes_no_plan(
    fixed_run: str, hubmerge: Command, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    result = hubmerge("retain", fixed_run, "--budget", "500kB", "--plan", path)
    assert result.code == 1
    assert "more than --budget 500kB" in result.err
    assert "best expert" in result.out
    assert not path.exists()


def test_experts_of_a_lock_stay(
    fixed_run: str, hubmerge: Command, hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / "mine.lock"
    path.write_bytes(lock_of(hub, fixed_run, 2, 16).to_bytes())
    plan = hubmerge("retain", fixed_run, "--lock", path, "--json").data
    name = f"lock {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    assert kept_reasons(plan)["step2"] == [f"choice of {name}"]
    assert kept_reasons(plan)["step16"] == [f"pick last of {name}"]
    # Other tests may have left locks in the home of `local_hub`.
    assert hashlib.sha256(path.read_bytes()).hexdigest() in plan["locks"]


def test_applying_deletes_the_dropped_names_and_nothing_else(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    before = tags(api, run)
    plan = write_plan(hubmerge, tmp_path, run)
    assert tags(api, run) == before
    result = hubmerge("retain", "--apply", plan, "--yes", "--json")
    assert result.code == 0, result.err
    assert set(result.data["deleted"]) == {f"{run}@step{step}" for step in (2, 4, 16, 32)}
    assert "frees nothing" in result.err
    assert tags(api, run) == {name: before[name] for name in ("step8", "step64")}
    # Reachable from main, so it can still be loaded by its commit.
    assert fetch_weights(api, run, before["step4"])
    again = hubmerge("retain", "--apply", plan, "--yes", "--json")
    assert (again.code, again.data["deleted"]) == (0, [])


def test_the_same_plan_is_the_same_bytes(fixed_run: str, hubmerge: Command, tmp_path: Path) -> None:
    data = write_plan(hubmerge, tmp_path, fixed_run).read_bytes()
    assert write_plan(hubmerge, tmp_path, fixed_run, fixed_run).read_bytes() == data
    assert parse_plan(data, "it").to_bytes() == data


def test_without_a_terminal_nothing_is_deleted(
    fixed_run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    plan = write_plan(hubmerge, tmp_path, fixed_run)
    result = hubmerge("retain", "--apply", plan)
    assert result.code == 2
    assert "--yes" in result.err
    assert len(tags(api, fixed_run)) == len(ACCURACIES)


@pytest.mark.parametrize(
    ("answer", "left"), [(b"n\n", 6), pytest.param(b"y\n", 2, marks=pytest.mark.slow)]
)
def test_a_terminal_asks_before_deleting(
    run: str,
    hubmerge: Command,
    api: HfApi,
    local_hub: LocalHub,
    tmp_path: Path,
    answer: bytes,
    left: int,
) -> None:
    plan = write_plan(hubmerge, tmp_path, run)
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    environment = {**os.environ, "HUBMERGE_HOME": str(local_hub.home), "HUBMERGE_HUB": "local"}
    done = subprocess.run(
        [Path(sys.executable).with_name("hubmerge"), "retain", "--apply", str(plan), "--quiet"],
        stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert done.returncode == (1 if left == 6 else 0)
    assert f"{run}@step16" in os.read(ours, 10_000).decode()
    assert len(tags(api, run)) == left
    for end in (ours, theirs):
        os.close(end)


def test_a_moved_tag_is_refused_with_both_shas(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    plan = write_plan(hubmerge, tmp_path, run)
    old, new = tags(api, run)["step4"], tags(api, run)["step2"]
    api.delete_tag(run, tag="step4")
    api.create_tag(run, tag="step4", revision=new)
    result = hubmerge("retain", "--apply", plan, "--yes")
    assert result.code == 3
    assert old in result.err
    assert new in result.err
    assert len(tags(api, run)) == len(ACCURACIES)


def test_a_kept_tag_that_is_gone_is_refused(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    plan = write_plan(hubmerge, tmp_path, run)
    api.delete_tag(run, tag="step8")
    result = hubmerge("retain", "--apply", plan, "--yes")
    assert result.code == 3
    assert "gone" in result.err


def test_a_lock_written_after_the_plan_is_followed(
    fixed_run: str, hubmerge: Command, hub: Hub, api: HfApi, local_hub: LocalHub, tmp_path: Path
) -> None:
    plan = write_plan(hubmerge, tmp_path, fixed_run)
    path = register_lock(local_hub, lock_of(hub, fixed_run, 4))
    try:
        result = hubmerge("retain", "--apply", plan, "--yes")
    finally:
        path.unlink()
    assert result.code == 3
    assert (
        f"{fixed_run}@step4 ({tags(api, fixed_run)['step4']}) is the choice of lock" in result.err
    )
    assert len(tags(api, fixed_run)) == len(ACCURACIES)


def test_applying_needs_the_locks_of_the_plan(
    run: str, hubmerge: Command, hub: Hub, tmp_path: Path
) -> None:
    path = tmp_path / "mine.lock"
    path.write_bytes(lock_of(hub, run, 4).to_bytes())
    plan = write_plan(hubmerge, tmp_path, run, "--lock", str(path))
    result = hubmerge("retain", "--apply", plan, "--yes")
    assert result.code == 3
    assert "name it with --lock" in result.err
    assert hubmerge("retain", "--apply", plan, "--yes", "--lock", path).code == 0


def test_an_unreadable_lock_stops_everything(
    fixed_run: str, hubmerge: Command, local_hub: LocalHub
) -> None:
    path = local_hub.home / "locks" / "broken.lock"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    try:
        assert hubmerge("retain", fixed_run).code == 3
    finally:
        path.unlink()


def edit_plan(path: Path, change: Mapping[str, Any], with_digest: bool) -> None:
    """Change the verdicts of a plan by hand; `with_digest` also updates its digest."""
    plan = parse_plan(path.read_bytes(), "it")
    verdicts = [dataclasses.replace(verdict, **change) for verdict in plan.verdicts]
    if with_digest:
        path.write_bytes(dataclasses.replace(plan, verdicts=tuple(verdicts)).to_bytes())
    else:
        fields = json.loads(path.read_bytes())
        path.write_text(json.dumps({**fields, "verdicts": list(map(dataclasses.asdict, verdicts))}))


def test_an_edited_plan_is_refused(
    fixed_run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    plan = write_plan(hubmerge, tmp_path, fixed_run)
    edit_plan(plan, {"keep": False}, with_digest=False)
    result = hubmerge("retain", "--apply", plan, "--yes")
    assert result.code == 3
    assert "digest" in result.err
    edit_plan(write_plan(hubmerge, tmp_path, fixed_run), {"keep": False}, with_digest=True)
    result = hubmerge("retain", "--apply", plan, "--yes")
    assert result.code == 3
    assert "main is not a step" in result.err
    assert len(tags(api, fixed_run)) == len(ACCURACIES)


def test_a_forged_plan_cannot_delete_what_a_lock_needs(
    fixed_run: str, hubmerge: Command, hub: Hub, api: HfApi, local_hub: LocalHub, tmp_path: Path
) -> None:
    path = register_lock(local_hub, lock_of(hub, fixed_run, 4, 16))
    try:
        path_of_plan = write_plan(hubmerge, tmp_path, fixed_run)
        plan = parse_plan(path_of_plan.read_bytes(), "it")
        forged = tuple(dataclasses.replace(v, keep=v.name == "main") for v in plan.verdicts)
        path_of_plan.write_bytes(dataclasses.replace(plan, verdicts=forged, locks=()).to_bytes())
        result = hubmerge("retain", "--apply", path_of_plan, "--yes", "--purge")
    finally:
        path.unlink()
    assert result.code == 3
    assert len(tags(api, fixed_run)) == len(ACCURACIES)


def fetch_weights(api: HfApi, repo: str, revision: str) -> bool:
    folder = api.snapshot_download(
        repo, revision=revision, local_dir=f"{os.environ['HOME']}/{revision}"
    )
    return (Path(folder) / "model.safetensors").is_file()


def test_purging_frees_files_that_only_dropped_steps_use(
    run: str, hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    before, stored = tags(api, run), sum(file.size for file in api.list_lfs_files(run))
    history = [commit.commit_id for commit in api.list_repo_commits(run)]
    plan = write_plan(hubmerge, tmp_path, run)
    # A tag of the user's own: its files must stay.
    api.create_tag(run, tag="mine", revision=before["step2"])
    result = hubmerge("retain", "--apply", plan, "--yes", "--purge", "--json")
    assert result.code == 0, result.err
    assert "can no longer be loaded" in result.err
    assert result.data["bytes_freed"] == pytest.approx(3 * WEIGHTS, rel=0.05)
    left = sum(file.size for file in api.list_lfs_files(run))
    assert stored - left == result.data["bytes_freed"]
    for revision in ("step8", "step64", "main", "mine"):
        assert fetch_weights(api, run, revision)
    # All commits keep their SHA, so locks and tags stay valid.
    assert [commit.commit_id for commit in api.list_repo_commits(run)] == history
    with pytest.raises(Exception, match="404"):
        fetch_weights(api, run, before["step4"])


def test_a_purge_keeps_the_files_of_a_lock_whose_tag_moved(
    run: str, hubmerge: Command, hub: Hub, api: HfApi, local_hub: LocalHub, tmp_path: Path
) -> None:
    before = tags(api, run)
    lock = lock_of(hub, run, 4)
    api.delete_tag(run, tag="step4")
    plan = parse_plan(write_plan(hubmerge, tmp_path, run).read_bytes(), "it")
    tree = api.list_repo_tree(run, revision=before["step4"])
    large = {file.lfs.sha256: file.size for file in tree if isinstance(file, RepoFile) and file.lfs}
    gone = dataclasses.replace(plan.dropped[0], name="step4", sha=before["step4"], contents=large)
    stale = dataclasses.replace(plan, verdicts=(*plan.verdicts, gone))
    assert (
        flow._find_unreferenced(hub, stale, {"l": lock}, PublishedUses(), ())[run]
        .keys()
        .isdisjoint(gone.contents)
    )
    assert (
        not flow._find_unreferenced(hub, stale, {}, PublishedUses(), ())[run]
        .keys()
        .isdisjoint(gone.contents)
    )


@pytest.mark.slow
def test_an_interrupted_purge_is_completed_by_the_same_command(
    run: str, hubmerge: Command, hub: Hub, local_hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    plan = write_plan(hubmerge, tmp_path, run)
    checked = flow.check_against_hub(
        hub, parse_plan(plan.read_bytes(), "it"), local_hub.home, (), no_progress
    )
    with run_proxy(hub.endpoint) as proxy:
        proxy.fail("DELETE .*/tag/step2", lose_response)
        proxy.fail("DELETE .*/tag/step16", status(500), times=9)
        proxied_hub = dataclasses.replace(hub, endpoint=proxy.url, deadline_s=5.0)
        with pytest.raises(HubUnreachable):
            flow.apply_plan(proxied_hub, checked, True, no_progress)
    assert set(tags(api, run)) == {"step8", "step16", "step32", "step64"}
    result = hubmerge("retain", "--apply", plan, "--yes", "--purge", "--json")
    assert result.code == 0, result.err
    assert result.data["bytes_freed"] == pytest.approx(4 * WEIGHTS, rel=0.05)
    assert set(tags(api, run)) == {"step8", "step64"}
    again = hubmerge("retain", "--apply", plan, "--yes", "--purge", "--json")
    assert again.data == {"deleted": [], "bytes_freed": 0, "unseen": []}


def test_a_tag_that_moves_at_the_last_moment_is_kept(
    run: str, hubmerge: Command, hub: Hub, local_hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    plan = write_plan(hubmerge, tmp_path, run)
    checked = flow.check_against_hub(
        hub, parse_plan(plan.read_bytes(), "it"), local_hub.home, (), no_progress
    )
    api.delete_tag(run, tag="step2")
    api.create_tag(run, tag="step2", revision="step8")
    with pytest.raises(IntegrityError, match="step2") as refused:
        flow.apply_plan(hub, checked, False, no_progress)
    assert "was not deleted" in refused.value.hint
    assert len(tags(api, run)) == len(ACCURACIES)


def no_progress(what: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("demo/mnist", "--as-delta"), "--to another"),
        (
            ("demo/mnist", "--as-delta", "--to", "demo/mnist"),
            "both as a full checkpoint and as a delta",
        ),
        (
            ("demo/mnist", "--as-delta", "--to", "keep/x", "--steps", "4,five"),
            "not a list of steps",
        ),
        (("demo/mnist", "--as-delta", "--to", "keep/x", "--steps", "5"), "has no step 5"),
        (("demo/mnist", "--to", "keep/x"), "--as-delta"),
        (("demo/mnist", "--yes"), "need --apply"),
        (("demo/mnist", "--apply", "plan.json"), "Name repositories to make a plan"),
        ((), "Name repositories to make a plan"),
        (("--apply", "no-plan.json"), "no plan no-plan.json"),
        (("demo/mnist", "--budget", "much"), "--budget 'much'"),
        (("demo/mnist", "--target", "tis"), "Did you mean ties"),
        (("demo/mnist", "--lock", "no.lock"), "no lock no.lock"),
    ],
)
def test_bad_arguments_give_a_message(
    hubmerge: Command, words: tuple[str, ...], sentence: str
) -> None:
    result = hubmerge("retain", *words)
    assert result.code == 2
    assert sentence in result.err
