"""Merging by a lock: the same bytes whatever names mean by now, or a refusal that says why."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download

from hubmerge.hub.client import Hub
from hubmerge.lock import NAME as LOCK
from hubmerge.lock import Lock, Pin
from hubmerge.manifest import NAME, Manifest, files_digest, parse_manifest
from hubmerge.refs import ModelRef
from tests import locks
from tests.journey.conftest import REPOS, WEIGHTS, Command, World

_numbers = itertools.count(1)


@pytest.fixture
def lock(pinned: Lock, tmp_path: Path) -> Path:
    return locks.write(pinned, tmp_path / "in" / LOCK)


@pytest.fixture
def owned(api: HfApi, hub: Hub, tmp_path: Path) -> tuple[Path, tuple[str, str]]:
    """A lock of repositories of this test's own: their names, and where it is."""
    number = next(_numbers)
    repos = (f"locked-{number}/mnist", f"locked-{number}/hebrew")
    for theirs, ours in zip(REPOS, repos, strict=True):
        locks.copy_steps(api, theirs, ours, tmp_path / "steps")
    return locks.write(locks.lock_of(hub, repos), tmp_path / "in" / LOCK), repos


def read(folder: Path) -> Manifest:
    return parse_manifest((folder / NAME).read_bytes(), str(folder))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_lock_builds_its_chosen_pick(
    hubmerge: Command, lock: Path, pinned: Lock, tmp_path: Path
) -> None:
    said = hubmerge("merge", "--lock", lock, "--out", tmp_path / "m", "--json")
    assert said.code == 0, said.err
    manifest = read(tmp_path / "m")
    assert manifest.experts == pinned.pick().experts
    assert [one.label for one in manifest.experts] == ["demo/mnist@step2", "demo/hebrew@step8"]
    assert [one.weight for one in manifest.experts] == [1.0, 0.5]
    assert [one.last_step for one in manifest.experts] == [8, 8]
    assert manifest.base == pinned.base.source
    assert manifest.command == "hubmerge merge --lock hubmerge.lock"
    assert manifest.lock == hashlib.sha256(lock.read_bytes()).hexdigest() == said.data["lock"]
    assert (tmp_path / "m" / LOCK).read_bytes() == lock.read_bytes()


def test_it_is_the_model_that_one_merges_by_hand(
    hubmerge: Command, lock: Path, tmp_path: Path
) -> None:
    by_lock = hubmerge("merge", "--lock", lock, "--out", tmp_path / "lock", "--json").data
    experts = ("demo/mnist@step2", "demo/hebrew@step8")
    by_hand = hubmerge(
        "merge", *experts, "--set", "weight=1,0.5", "--out", tmp_path / "hand", "--json"
    ).data
    assert (by_lock["digest"], by_lock["recipe"]) == (by_hand["digest"], by_hand["recipe"])
    assert LOCK not in read(tmp_path / "lock").files
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("lock", "hand")]
    assert weights[0] == weights[1]


def test_the_rivals_can_be_built_too(hubmerge: Command, lock: Path, tmp_path: Path) -> None:
    for policy, steps in {"last": [8, 8], "uniform": [4, 4], "coordinate": [2, 8]}.items():
        out = tmp_path / policy
        assert hubmerge("merge", "--lock", lock, "--policy", policy, "--out", out).code == 0
        assert [one.step for one in read(out).experts] == steps
        assert read(out).command.endswith(f"--policy {policy}")
    said = hubmerge("merge", "--lock", lock, "--policy", "cordinate", "--out", tmp_path / "x")
    assert (said.code, "Did you mean coordinate?" in said.err) == (2, True)


def test_the_same_lock_is_the_same_bytes_wherever_tags_went(
    hubmerge: Command, owned: tuple[Path, tuple[str, str]], api: HfApi, tmp_path: Path
) -> None:
    lock, repos = owned
    words = ("merge", "--lock", lock, "--policy", "last")
    assert hubmerge(*words, "--out", tmp_path / "before").code == 0
    old, new = locks.move(api, repos[0], 8)
    said = hubmerge(*words, "--out", tmp_path / "after")
    assert said.code == 0
    assert f"{repos[0]}@step8 is pinned to {old} and now means {new}." in said.err
    assert content(tmp_path / "before") == content(tmp_path / "after")


def test_locked_refuses_all_drift_at_once_and_writes_nothing(
    hubmerge: Command, owned: tuple[Path, tuple[str, str]], api: HfApi, tmp_path: Path
) -> None:
    lock, repos = owned
    words = ("merge", "--lock", lock, "--policy", "last", "--out", tmp_path / "m", "--locked")
    assert hubmerge(*words, "--dry-run").code == 0
    moved = [locks.move(api, repo, 8) for repo in repos]
    said = hubmerge(*words, "--push", "locked/never")
    assert said.code == 3
    for repo, (old, new) in zip(repos, moved, strict=True):
        assert f"{repo}@step8 is pinned to {old} and now means {new}." in said.err
    assert "Leave out --locked" in said.err
    assert not (tmp_path / "m").exists()
    assert not api.repo_exists("locked/never")


def test_a_tag_that_is_gone_is_drift(
    hubmerge: Command, owned: tuple[Path, tuple[str, str]], api: HfApi, tmp_path: Path
) -> None:
    lock, repos = owned
    for step in (2, 4, 8):
        api.delete_tag(repos[0], tag=f"step{step}")
    words = ("merge", "--lock", lock, "--out", tmp_path / "m")
    assert hubmerge(*words, "--locked").code == 3
    said = hubmerge(*words)
    assert (said.code, f"{repos[0]}@step2 is pinned to" in said.err) == (0, True)


def test_a_repository_that_was_made_anew_is_not_the_one_that_was_pinned(
    hubmerge: Command, owned: tuple[Path, tuple[str, str]], api: HfApi, tmp_path: Path
) -> None:
    lock, repos = owned
    old = json.loads(lock.read_bytes())["experts"][0]["source"]["sha"]
    api.delete_repo(repos[0])
    words = ("merge", "--lock", lock, "--out", tmp_path / "m")
    said = hubmerge(*words)
    assert said.code == 3
    assert f"pinned to {old} and now means nothing, and the pinned commit is gone" in said.err
    api.create_repo(repos[0])
    new = locks.tag(api, repos[0], 2, tmp_path / "steps" / "demo" / "mnist" / "4")
    for more in ((), ("--locked",)):
        said = hubmerge(*words, *more)
        assert said.code == 3
        assert f"pinned to {old} and now means {new}, and the pinned commit is gone" in said.err
        assert "Put back what is gone" in said.err
    assert not (tmp_path / "m").exists()


Change = Callable[[Lock], Lock]


def with_digest(pin: Pin, name: str, digest: str) -> Pin:
    """A pin of other bytes, and nothing about it that is wrong in itself."""
    files = {**pin.files, name: digest}
    source = dataclasses.replace(pin.source, digest=files_digest(files))
    return dataclasses.replace(pin, files=files, source=source)


@pytest.mark.parametrize("name", [WEIGHTS, "open_clip_config.json", "more.json"])
def test_every_file_is_the_one_that_was_pinned(
    hubmerge: Command, pinned: Lock, tmp_path: Path, name: str
) -> None:
    base = with_digest(pinned.base, name, "0" * 64)
    expert = with_digest(pinned.pin(pinned.pick().experts[0]), name, "1" * 64)
    picks = [
        dataclasses.replace(one, experts=(expert.source, one.experts[1])) for one in pinned.picks
    ]
    spoiled = dataclasses.replace(
        pinned, base=base, experts=(expert, *pinned.experts), picks=tuple(picks)
    )
    lock = locks.write(spoiled, tmp_path / LOCK)
    said = hubmerge("merge", "--lock", lock, "--out", tmp_path / "m")
    assert said.code == 3
    for source, digest in ((base.source, "0" * 64), (expert.source, "1" * 64)):
        assert f"{name} of {source.label} has SHA-256" in said.err
        assert digest in said.err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("demo/mnist@step4",), "experts cannot be given as well"),
        (("--method", "ties"), "--method cannot"),
        (("--set", "density=1", "--dtype", "BF16"), "--set, --dtype cannot"),
        (("--base", "hubmerge/tiny-clip"), "The lock pins its base"),
        (("--base", "."), "The lock pins its base"),
        (("--pull-request",), "--pull-request goes to a repository"),
        (("--pull-request", "--push", "o/m@v1"), "A pull request has no tag"),
        (("--pull-request", "--push", "o/m", "--private"), "--private"),
    ],
)
def test_a_lock_says_it_all(
    hubmerge: Command, lock: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    answer = hubmerge("merge", "--lock", lock, *words, "--out", tmp_path / "m")
    assert (answer.code, said in answer.err) == (2, True), answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to merge"),
        (("demo/mnist@step4", "--locked"), "--locked belongs to --lock"),
        (("demo/mnist@step4", "--policy", "last"), "--policy belongs to --lock"),
        (("--lock", "no/such.lock"), "There is no lock no/such.lock"),
    ],
)
def test_without_a_lock_there_is_nothing_locked(
    hubmerge: Command, words: tuple[str, ...], said: str
) -> None:
    answer = hubmerge("merge", *words)
    assert (answer.code, said in answer.err) == (2, True), answer.err


def test_a_base_that_was_a_folder_is_named_and_checked(
    hubmerge: Command, hub: Hub, world: World, tmp_path: Path
) -> None:
    folder = Path(
        snapshot_download(
            "hubmerge/tiny-clip", endpoint=world.server.url, token=False, local_dir=tmp_path / "b"
        )
    )
    made = locks.lock_of(hub, REPOS, base=ModelRef(path=folder))
    lock = locks.write(made, tmp_path / LOCK)
    words = ("merge", "--lock", lock, "--out", tmp_path / "m")
    said = hubmerge(*words)
    assert (said.code, "Name it with --base" in said.err) == (2, True)
    said = hubmerge(*words, "--base", folder)
    assert said.code == 0, said.err
    (folder / "open_clip_config.json").write_text("{}")
    said = hubmerge(*words, "--base", folder, "--replace")
    assert (said.code, "open_clip_config.json of" in said.err) == (3, True)


def test_again_is_nothing_and_a_lost_lock_is_put_back(
    hubmerge: Command, lock: Path, tmp_path: Path
) -> None:
    words = ("merge", "--lock", lock, "--out", tmp_path / "m")
    assert hubmerge(*words).code == 0
    before = (tmp_path / "m" / NAME).stat().st_mtime_ns
    assert hubmerge(*words).code == 0
    assert (tmp_path / "m" / NAME).stat().st_mtime_ns == before
    (tmp_path / "m" / LOCK).write_text("{}")
    assert hubmerge(*words).code == 1
    assert hubmerge(*words, "--replace").code == 0
    assert (tmp_path / "m" / LOCK).read_bytes() == lock.read_bytes()


def test_the_lock_is_published_and_a_new_card_keeps_it(
    hubmerge: Command, lock: Path, api: HfApi, tmp_path: Path
) -> None:
    said = hubmerge("merge", "--lock", lock, "--out", tmp_path / "m", "--push", "locked/merged")
    assert said.code == 0, said.err
    assert hubmerge("card", "locked/merged", "--push", "locked/merged").code == 0
    here = api.hf_hub_download("locked/merged", LOCK, local_dir=tmp_path / "fetched")
    assert Path(here).read_bytes() == lock.read_bytes()


def test_a_pull_request_is_opened_once_and_can_be_fetched(
    hubmerge: Command, lock: Path, api: HfApi, tmp_path: Path
) -> None:
    words = ("merge", "--lock", lock, "--out", tmp_path / "m", "--push", "locked/proposed")
    said = hubmerge(*words, "--pull-request")
    assert (said.code, "no such repository" in said.err) == (1, True)
    assert not (tmp_path / "m").exists()

    api.create_repo("locked/proposed")
    head = api.model_info("locked/proposed").sha
    said = hubmerge(*words, "--pull-request", "--json")
    assert said.code == 0, said.err
    assert said.data["pull_request"].endswith("/locked/proposed/discussions/1")
    again = hubmerge(*words, "--pull-request")
    assert "/locked/proposed/discussions/1" in again.out.replace("\n", "")
    assert len(list(api.get_repo_discussions("locked/proposed"))) == 1
    assert api.model_info("locked/proposed").sha == head
    there = api.snapshot_download(
        "locked/proposed", revision="refs/pr/1", local_dir=tmp_path / "there"
    )
    ours = content(tmp_path / "m")
    assert {name: (Path(there) / name).read_bytes() for name in ours} == ours

    api.merge_pull_request("locked/proposed", 1)
    said = hubmerge(*words, "--pull-request", "--json")
    assert (said.code, said.data["pull_request"]) == (0, None)
    assert "nothing to propose" in said.err


def test_checkpoint_folders_of_one_commit_are_pinned_each(
    hubmerge: Command, api: HfApi, hub: Hub, tmp_path: Path
) -> None:
    api.create_repo("locked/folders")
    for step in (2, 4, 8):
        folder = api.snapshot_download(
            "demo/mnist", revision=f"step{step}", local_dir=tmp_path / str(step)
        )
        api.upload_folder(
            repo_id="locked/folders", folder_path=folder, path_in_repo=f"checkpoint-{step}",
            ignore_patterns=".*",
        )  # fmt: skip
    lock = locks.write(locks.lock_of(hub, ("locked/folders", "demo/hebrew")), tmp_path / LOCK)
    words = ("merge", "--lock", lock, "--locked")
    for policy, step in {"last": 8, "coordinate": 2}.items():
        out = tmp_path / policy
        said = hubmerge(*words, "--policy", policy, "--out", out)
        assert said.code == 0, said.err
        assert read(out).experts[0].folder == f"checkpoint-{step}"
        assert hubmerge("verify", out, "--rebuild").code == 0
    weights = [(tmp_path / policy / WEIGHTS).read_bytes() for policy in ("last", "coordinate")]
    assert weights[0] != weights[1]
