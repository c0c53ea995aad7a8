"""Verifying: everything that is wrong with a model, at once, and nothing that is not."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubmerge.hub.client import Hub
from hubmerge.lock import NAME as LOCK
from hubmerge.lock import Lock
from hubmerge.manifest import NAME
from tests import locks
from tests.journey.conftest import REPOS, WEIGHTS, Command, Said, World, command

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def merged(pinned: Lock, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a lock made; no test changes it."""
    folder = tmp_path_factory.mktemp("merged")
    lock = locks.write(pinned, folder / LOCK)
    assert command("merge", "--lock", str(lock), "--out", str(folder / "m")).code == 0
    return folder / "m"


@pytest.fixture
def mine(merged: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(merged, tmp_path / "mine"))


def wrong(said: Said) -> dict[str, str]:
    """What a verification found wrong; everything must be in the error as well."""
    found = {one["what"]: one["problem"] for one in said.data if one["problem"]}
    assert said.code == (3 if found else 0), said.err
    assert all(problem in said.err for problem in found.values())
    return found


def told(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a manifest says."""
    manifest = json.loads((folder / NAME).read_bytes())
    change(manifest)
    (folder / NAME).write_text(json.dumps(manifest))


def relocked(folder: Path, lock: Lock) -> None:
    """Put another lock beside a merge, and make its manifest name that one."""
    (folder / LOCK).write_bytes(lock.to_bytes())
    digest = hashlib.sha256(lock.to_bytes()).hexdigest()
    told(folder, lambda manifest: manifest.update(lock=digest))


def test_a_merge_is_what_it_says(hubmerge: Command, merged: Path) -> None:
    said = hubmerge("verify", merged, "--json")
    assert wrong(said) == {}
    assert {one["what"] for one in said.data} >= {
        WEIGHTS, LOCK, "recipe", "demo/mnist@step2", "demo/hebrew@step8",
    }  # fmt: skip
    assert "none wrong" in " ".join(hubmerge("verify", merged).out.split())


def test_made_again_it_is_the_same_bytes(hubmerge: Command, merged: Path, world: World) -> None:
    said = hubmerge("verify", merged, "--rebuild", "--json")
    assert wrong(said) == {}
    assert f"rebuilt {WEIGHTS}" in {one["what"] for one in said.data}
    assert list(world.home.glob("tmp*")) == []


def test_a_merge_by_hand_and_an_expert_have_no_lock(hubmerge: Command, tmp_path: Path) -> None:
    by_hand = ("demo/mnist@step4", "demo/hebrew@step2", "--method", "dare", "--dtype", "F16")
    assert hubmerge("merge", *by_hand, "--out", tmp_path / "m").code == 0
    assert wrong(hubmerge("verify", tmp_path / "m", "--rebuild", "--json")) == {}
    said = hubmerge("verify", "demo/mnist@step4", "--json")
    assert wrong(said) == {}
    assert any(one["what"].startswith("hubmerge/tiny-clip@") for one in said.data)
    said = hubmerge("verify", "demo/mnist@step4", "--rebuild")
    assert (said.code, "hubmerge train" in said.err) == (2, True)
    said = hubmerge("verify", "hubmerge/tiny-clip")
    assert (said.code, "has no hubmerge.json" in said.err) == (2, True)


def test_files_that_are_not_those_of_the_manifest(hubmerge: Command, mine: Path) -> None:
    weights = bytearray((mine / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (mine / WEIGHTS).write_bytes(weights)
    (mine / "open_clip_config.json").unlink()
    shutil.copy(mine / WEIGHTS, mine / "more.safetensors")
    found = wrong(hubmerge("verify", mine, "--json"))
    assert set(found) == {WEIGHTS, "open_clip_config.json", "more.safetensors"}
    assert hashlib.sha256(weights).hexdigest() in found[WEIGHTS]


def test_a_manifest_may_not_name_files_elsewhere(hubmerge: Command, mine: Path) -> None:
    (mine.parent / "secret").write_text("secret")
    names = ("../secret", str(mine.parent / "secret"))
    told(mine, lambda manifest: manifest["files"].update(dict.fromkeys(names, "0" * 64)))
    found = wrong(hubmerge("verify", mine, "--json"))
    assert set(found) == set(names)
    assert all("not a path inside" in problem for problem in found.values())


def test_a_lock_that_is_missing_or_another(
    hubmerge: Command, mine: Path, merged: Path, tmp_path: Path
) -> None:
    (mine / LOCK).unlink()
    assert "not beside it" in wrong(hubmerge("verify", mine, "--json"))[LOCK]
    assert wrong(hubmerge("verify", mine, "--lock", merged / LOCK, "--json")) == {}
    (mine / LOCK).write_bytes((merged / LOCK).read_bytes() + b"\n")
    assert "has SHA-256" in wrong(hubmerge("verify", mine, "--json"))[LOCK]
    (mine / LOCK).write_text("[")
    assert "no lock" in wrong(hubmerge("verify", mine, "--json"))[LOCK]
    said = hubmerge("verify", mine, "--lock", tmp_path / "none.lock")
    assert (said.code, "There is no lock" in said.err) == (2, True)


def test_a_merge_that_no_pick_says(hubmerge: Command, mine: Path, pinned: Lock) -> None:
    relocked(mine, dataclasses.replace(pinned, method="task_arithmetic", picks=tuple(
        dataclasses.replace(one, params={"scale": 1.0}) for one in pinned.picks
    )))  # fmt: skip
    assert "no pick of its lock" in wrong(hubmerge("verify", mine, "--json"))["recipe"]


def test_a_manifest_that_flatters_its_experts(hubmerge: Command, mine: Path) -> None:
    told(mine, lambda manifest: manifest["experts"][0].update(label="demo/mnist@step8", step=8))
    found = wrong(hubmerge("verify", mine, "--json"))
    assert "other things" in found["recipe"]
    assert "now means" in found["demo/mnist@step8"]


def test_a_manifest_that_was_given_other_experts_cannot_be_made_again(
    hubmerge: Command, mine: Path
) -> None:
    told(mine, lambda manifest: manifest["experts"][0].update(weight=2.0))
    found = wrong(hubmerge("verify", mine, "--rebuild", "--json"))
    assert set(found) == {"recipe", f"rebuilt {WEIGHTS}"}


def test_pinned_names_that_moved_or_went(
    hubmerge: Command,
    world: World,
    hub: Hub,
    api: HfApi,
    tmp_path: Path,
) -> None:
    number = next(_numbers)
    repos = (f"verify-{number}/mnist", f"verify-{number}/hebrew")
    for theirs, ours in zip(REPOS, repos, strict=True):
        locks.copy_steps(api, theirs, ours, tmp_path / "steps")
    lock = locks.write(locks.lock_of(hub, repos), tmp_path / LOCK)
    assert hubmerge("merge", "--lock", lock, "--out", tmp_path / "m").code == 0
    assert wrong(hubmerge("verify", tmp_path / "m", "--json")) == {}
    old, new = locks.move(api, repos[0], 2)
    api.delete_repo(repos[1])
    found = wrong(hubmerge("verify", tmp_path / "m", "--rebuild", "--json"))
    assert found[f"{repos[0]}@step2"] == f"{repos[0]}@step2 is pinned to {old} and now means {new}."
    assert "the pinned commit is gone" in found[f"{repos[1]}@step8"]
    assert "cannot be made again" in found["rebuilt"]


def test_what_is_published_or_proposed_is_verified_as_well(
    hubmerge: Command,
    merged: Path,
    api: HfApi,
) -> None:
    api.create_repo("verify/merged")
    words = ("merge", "--lock", merged / LOCK, "--out", merged, "--push", "verify/merged")
    assert hubmerge(*words, "--pull-request").code == 0
    assert wrong(hubmerge("verify", "verify/merged@refs/pr/1", "--json")) == {}
    assert hubmerge(*words).code == 0
    assert wrong(hubmerge("verify", "verify/merged", "--json")) == {}
    api.delete_file(LOCK, "verify/merged")
    api.upload_file(
        path_or_fileobj=b"{}", path_in_repo="open_clip_config.json", repo_id="verify/merged"
    )
    found = wrong(hubmerge("verify", "verify/merged", "--json"))
    assert set(found) == {LOCK, "open_clip_config.json"}
