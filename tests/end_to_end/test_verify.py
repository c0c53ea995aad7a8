"""hubmerge verify: it reports all problems of a model together, and only those."""

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
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.lock import Lock
from hubmerge.manifest import MANIFEST_JSON
from tests import locks
from tests.end_to_end.conftest import REPOS, WEIGHTS, Command, CommandResult, LocalHub, run_hubmerge

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def merged(pinned: Lock, local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge built from a lock; no test changes it."""
    folder = tmp_path_factory.mktemp("merged")
    lock = locks.write_lock(pinned, folder / LOCK)
    assert run_hubmerge("merge", "--lock", str(lock), "--out", str(folder / "m")).code == 0
    return folder / "m"


@pytest.fixture
def merged_copy(merged: Path, tmp_path: Path) -> Path:
    """A copy of the merge that a test may change."""
    return Path(shutil.copytree(merged, tmp_path / "copy"))


def problems_of(result: CommandResult) -> dict[str, str]:
    """Return the problems in the JSON output, and check that stderr has them all too."""
    problems = {check["what"]: check["problem"] for check in result.data if check["problem"]}
    assert result.code == (3 if problems else 0), result.err
    assert all(problem in result.err for problem in problems.values())
    return problems


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest of a folder."""
    manifest = json.loads((folder / MANIFEST_JSON).read_bytes())
    change(manifest)
    (folder / MANIFEST_JSON).write_text(json.dumps(manifest))


def replace_lock(folder: Path, lock: Lock) -> None:
    """Write another lock into the folder of a merge, and record its digest in the manifest."""
    (folder / LOCK).write_bytes(lock.to_bytes())
    digest = hashlib.sha256(lock.to_bytes()).hexdigest()
    change_manifest(folder, lambda manifest: manifest.update(lock=digest))


def test_an_unchanged_merge_has_no_problems(hubmerge: Command, merged: Path) -> None:
    result = hubmerge("verify", merged, "--json")
    assert problems_of(result) == {}
    assert {check["what"] for check in result.data} >= {
        WEIGHTS, LOCK, "recipe", "demo/mnist@step2", "demo/hebrew@step8",
    }  # fmt: skip
    assert "none wrong" in " ".join(hubmerge("verify", merged).out.split())


def test_a_rebuilt_merge_has_the_same_bytes(
    hubmerge: Command, merged: Path, local_hub: LocalHub
) -> None:
    result = hubmerge("verify", merged, "--rebuild", "--json")
    assert problems_of(result) == {}
    assert f"rebuilt {WEIGHTS}" in {check["what"] for check in result.data}
    assert list(local_hub.home.glob("tmp*")) == []


def test_a_merge_by_hand_and_an_expert_need_no_lock(hubmerge: Command, tmp_path: Path) -> None:
    by_hand = ("demo/mnist@step4", "demo/hebrew@step2", "--method", "dare", "--dtype", "F16")
    assert hubmerge("merge", *by_hand, "--out", tmp_path / "m").code == 0
    assert problems_of(hubmerge("verify", tmp_path / "m", "--rebuild", "--json")) == {}
    older = (*by_hand, "--set", "masks=1", "--out", tmp_path / "older")
    assert hubmerge("merge", *older).code == 0
    assert "masks" not in json.loads((tmp_path / "older" / "hubmerge.json").read_text())["params"]
    assert problems_of(hubmerge("verify", tmp_path / "older", "--rebuild", "--json")) == {}
    result = hubmerge("verify", "demo/mnist@step4", "--json")
    assert problems_of(result) == {}
    assert any(check["what"].startswith("hubmerge/tiny-clip@") for check in result.data)
    result = hubmerge("verify", "demo/mnist@step4", "--rebuild")
    assert (result.code, "hubmerge train" in result.err) == (2, True)
    result = hubmerge("verify", "hubmerge/tiny-clip")
    assert (result.code, "has no hubmerge.json" in result.err) == (2, True)


def test_changed_missing_and_extra_files_are_reported(hubmerge: Command, merged_copy: Path) -> None:
    weights = bytearray((merged_copy / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (merged_copy / WEIGHTS).write_bytes(weights)
    (merged_copy / "open_clip_config.json").unlink()
    shutil.copy(merged_copy / WEIGHTS, merged_copy / "more.safetensors")
    problems = problems_of(hubmerge("verify", merged_copy, "--json"))
    assert set(problems) == {WEIGHTS, "open_clip_config.json", "more.safetensors"}
    assert hashlib.sha256(weights).hexdigest() in problems[WEIGHTS]


def test_a_manifest_may_not_name_files_outside_the_folder(
    hubmerge: Command, merged_copy: Path
) -> None:
    (merged_copy.parent / "secret").write_text("secret")
    names = ("../secret", str(merged_copy.parent / "secret"))
    change_manifest(
        merged_copy, lambda manifest: manifest["files"].update(dict.fromkeys(names, "0" * 64))
    )
    problems = problems_of(hubmerge("verify", merged_copy, "--json"))
    assert set(problems) == set(names)
    assert all("not a path inside" in problem for problem in problems.values())


def test_a_missing_or_different_lock_is_reported(
    hubmerge: Command, merged_copy: Path, merged: Path, tmp_path: Path
) -> None:
    (merged_copy / LOCK).unlink()
    assert "not next to it" in problems_of(hubmerge("verify", merged_copy, "--json"))[LOCK]
    assert problems_of(hubmerge("verify", merged_copy, "--lock", merged / LOCK, "--json")) == {}
    (merged_copy / LOCK).write_bytes((merged / LOCK).read_bytes() + b"\n")
    assert "has SHA-256" in problems_of(hubmerge("verify", merged_copy, "--json"))[LOCK]
    (merged_copy / LOCK).write_text("[")
    assert "not a valid lock" in problems_of(hubmerge("verify", merged_copy, "--json"))[LOCK]
    result = hubmerge("verify", merged_copy, "--lock", tmp_path / "none.lock")
    assert (result.code, "There is no lock" in result.err) == (2, True)


def test_a_merge_that_is_no_pick_of_the_lock_is_reported(
    hubmerge: Command, merged_copy: Path, pinned: Lock
) -> None:
    replace_lock(merged_copy, dataclasses.replace(pinned, method="task_arithmetic", picks=tuple(
        dataclasses.replace(pick, params={"scale": 1.0}) for pick in pinned.picks
    )))  # fmt: skip
    assert "No pick of the lock" in problems_of(hubmerge("verify", merged_copy, "--json"))["recipe"]


def test_a_wrong_step_in_the_manifest_is_reported(hubmerge: Command, merged_copy: Path) -> None:
    change_manifest(
        merged_copy,
        lambda manifest: manifest["experts"][0].update(label="demo/mnist@step8", step=8),
    )
    problems = problems_of(hubmerge("verify", merged_copy, "--json"))
    assert "does not describe" in problems["recipe"]
    assert "now resolves to" in problems["demo/mnist@step8"]


def test_a_manifest_with_another_weight_does_not_rebuild(
    hubmerge: Command, merged_copy: Path
) -> None:
    change_manifest(merged_copy, lambda manifest: manifest["experts"][0].update(weight=2.0))
    problems = problems_of(hubmerge("verify", merged_copy, "--rebuild", "--json"))
    assert set(problems) == {"recipe", f"rebuilt {WEIGHTS}"}


def test_moved_tags_and_deleted_repositories_are_reported(
    hubmerge: Command,
    local_hub: LocalHub,
    hub: Hub,
    api: HfApi,
    tmp_path: Path,
) -> None:
    number = next(_numbers)
    repos = (f"verify-{number}/mnist", f"verify-{number}/hebrew")
    for original, copy in zip(REPOS, repos, strict=True):
        locks.copy_steps(api, original, copy, tmp_path / "steps")
    lock = locks.write_lock(locks.make_lock(hub, repos), tmp_path / LOCK)
    assert hubmerge("merge", "--lock", lock, "--out", tmp_path / "m").code == 0
    assert problems_of(hubmerge("verify", tmp_path / "m", "--json")) == {}
    old, new = locks.move_tag(api, repos[0], 2)
    api.delete_repo(repos[1])
    problems = problems_of(hubmerge("verify", tmp_path / "m", "--rebuild", "--json"))
    label = f"{repos[0]}@step2"
    assert problems[label] == f"{label} is pinned to {old} and now resolves to {new}."
    assert "the pinned commit is gone" in problems[f"{repos[1]}@step8"]
    assert "cannot be made again" in problems["rebuilt"]


def test_a_published_or_proposed_merge_is_verified_too(
    hubmerge: Command,
    merged: Path,
    api: HfApi,
) -> None:
    api.create_repo("verify/merged")
    words = ("merge", "--lock", merged / LOCK, "--out", merged, "--push", "verify/merged")
    assert hubmerge(*words, "--pull-request").code == 0
    assert problems_of(hubmerge("verify", "verify/merged@refs/pr/1", "--json")) == {}
    assert hubmerge(*words).code == 0
    assert problems_of(hubmerge("verify", "verify/merged", "--json")) == {}
    api.delete_file(LOCK, "verify/merged")
    api.upload_file(
        path_or_fileobj=b"{}", path_in_repo="open_clip_config.json", repo_id="verify/merged"
    )
    problems = problems_of(hubmerge("verify", "verify/merged", "--json"))
    assert set(problems) == {LOCK, "open_clip_config.json"}
