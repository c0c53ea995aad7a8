"""hubmerge merge --lock: the pinned bytes, wherever tags point now, or an error with the reason."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, snapshot_download

from hubmerge.errors import HubOffline
from hubmerge.hub.client import Hub
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.lock import Lock, Pin, identity
from hubmerge.manifest import MANIFEST_JSON, Manifest, files_digest, parse_manifest
from hubmerge.opening.bases import common_base
from hubmerge.opening.locked_experts import open_pick
from hubmerge.opening.merge_experts import last_step, open_merge_inputs
from hubmerge.opening.references import pin
from hubmerge.refs import ModelRef, parse_ref
from tests import locks
from tests.end_to_end.conftest import REPOS, WEIGHTS, Command, LocalHub

_numbers = itertools.count(1)


@pytest.fixture
def lock(pinned: Lock, tmp_path: Path) -> Path:
    return locks.write_lock(pinned, tmp_path / "in" / LOCK)


@pytest.fixture
def own_lock(api: HfApi, hub: Hub, tmp_path: Path) -> tuple[Path, tuple[str, str]]:
    """A lock of repositories that only this test uses: its path, and their ids."""
    number = next(_numbers)
    repos = (f"locked-{number}/mnist", f"locked-{number}/hebrew")
    for original, copy in zip(REPOS, repos, strict=True):
        locks.copy_steps(api, original, copy, tmp_path / "steps")
    return locks.write_lock(locks.make_lock(hub, repos), tmp_path / "in" / LOCK), repos


def read(folder: Path) -> Manifest:
    return parse_manifest((folder / MANIFEST_JSON).read_bytes(), str(folder))


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_lock_builds_the_chosen_pick(
    hubmerge: Command, lock: Path, pinned: Lock, tmp_path: Path
) -> None:
    result = hubmerge("merge", "--lock", lock, "--out", tmp_path / "m", "--json")
    assert result.code == 0, result.err
    manifest = read(tmp_path / "m")
    assert manifest.experts == pinned.pick().experts
    labels = [expert.label for expert in manifest.experts]
    assert labels == ["demo/mnist@step2", "demo/hebrew@step8"]
    assert [expert.weight for expert in manifest.experts] == [1.0, 0.5]
    assert [expert.last_step for expert in manifest.experts] == [8, 8]
    assert manifest.base == pinned.base.source
    assert manifest.command == "hubmerge merge --lock hubmerge.lock"
    assert manifest.lock == hashlib.sha256(lock.read_bytes()).hexdigest() == result.data["lock"]
    assert (tmp_path / "m" / LOCK).read_bytes() == lock.read_bytes()


def test_a_merge_by_hand_gives_the_same_model(
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


def test_a_lock_of_an_earlier_version_seeds_by_commits(
    hubmerge: Command, hub: Hub, tmp_path: Path
) -> None:
    """Its masks were drawn by commits, so its bytes are those that were published then."""
    new = locks.make_lock(hub, REPOS, "dare", {})
    fields = json.loads(new.to_bytes())

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("weights", "settings")}
        return [strip(item) for item in value] if isinstance(value, list) else value

    old = tmp_path / "old" / LOCK
    old.parent.mkdir()
    old.write_text(json.dumps(strip(fields)))
    for lock, name in ((old, "by-commit"), (locks.write_lock(new, tmp_path / "n" / LOCK), "new")):
        assert hubmerge("merge", "--lock", lock, "--out", tmp_path / name).code == 0
    commits = [expert.sha for expert in new.pick().experts]
    weights = [str(expert.weights) for expert in new.pick().experts]
    assert [e.content_key for e in read(tmp_path / "by-commit").experts] == commits
    assert [e.content_key for e in read(tmp_path / "new").experts] == weights
    merges = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("by-commit", "new")]
    assert merges[0] != merges[1]
    assert hubmerge("verify", tmp_path / "by-commit", "--rebuild").code == 0


def test_the_other_picks_can_be_built_too(hubmerge: Command, lock: Path, tmp_path: Path) -> None:
    for policy, steps in {"last": [8, 8], "uniform": [4, 4], "coordinate": [2, 8]}.items():
        out = tmp_path / policy
        assert hubmerge("merge", "--lock", lock, "--policy", policy, "--out", out).code == 0
        assert [expert.step for expert in read(out).experts] == steps
        assert read(out).command.endswith(f"--policy {policy}")
    result = hubmerge("merge", "--lock", lock, "--policy", "cordinate", "--out", tmp_path / "x")
    assert (result.code, "Did you mean coordinate?" in result.err) == (2, True)


def test_moved_tags_do_not_change_the_bytes(
    hubmerge: Command, own_lock: tuple[Path, tuple[str, str]], api: HfApi, tmp_path: Path
) -> None:
    lock, repos = own_lock
    words = ("merge", "--lock", lock, "--policy", "last")
    assert hubmerge(*words, "--out", tmp_path / "before").code == 0
    old, new = locks.move_tag(api, repos[0], 8)
    result = hubmerge(*words, "--out", tmp_path / "after")
    assert result.code == 0
    assert f"{repos[0]}@step8 is pinned to {old} and now resolves to {new}." in result.err
    assert read_files(tmp_path / "before") == read_files(tmp_path / "after")


def test_offline_the_pinned_commits_come_from_the_cache(
    hub: Hub, pinned: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = open_pick(hub, pinned, None, strict=True, base=None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = dataclasses.replace(hub, endpoint="http://127.0.0.1:1")  # where no Hub is
    offline = open_pick(hub, pinned, None, strict=False, base=None)
    assert [expert.files for expert in offline.experts] == [e.files for e in online.experts]
    assert "was not checked" in " ".join(offline.notes)
    with pytest.raises(HubOffline, match="reading the tags"):
        open_pick(hub, pinned, None, strict=True, base=None)
    ref = parse_ref(f"{REPOS[0]}@{pinned.pick().experts[0].sha}")
    inputs = open_merge_inputs(hub, [ref], "average", {}, None)
    assert inputs.sources[0].last_sha is None
    assert "the last steps of the experts are not known" in " ".join(inputs.notes)
    assert common_base(hub, [pin(hub, ref)]).revision == pinned.base.source.sha
    assert last_step(hub, pin(hub, ref).revision) is None


def test_locked_reports_every_moved_tag_and_writes_nothing(
    hubmerge: Command, own_lock: tuple[Path, tuple[str, str]], api: HfApi, tmp_path: Path
) -> None:
    lock, repos = own_lock
    words = ("merge", "--lock", lock, "--policy", "last", "--out", tmp_path / "m", "--locked")
    assert hubmerge(*words, "--dry-run").code == 0
    moved = [locks.move_tag(api, repo, 8) for repo in repos]
    result = hubmerge(*words, "--push", "locked/never")
    assert result.code == 3
    for repo, (old, new) in zip(repos, moved, strict=True):
        assert f"{repo}@step8 is pinned to {old} and now resolves to {new}." in result.err
    assert "Leave out --locked" in result.err
    assert not (tmp_path / "m").exists()
    assert not api.repo_exists("locked/never")


@pytest.mark.slow
def test_a_deleted_tag_is_reported(
    hubmerge: Command, own_lock: tuple[Path, tuple[str, str]], api: HfApi, tmp_path: Path
) -> None:
    lock, repos = own_lock
    for step in (2, 4, 8):
        api.delete_tag(repos[0], tag=f"step{step}")
    words = ("merge", "--lock", lock, "--out", tmp_path / "m")
    assert hubmerge(*words, "--locked").code == 3
    result = hubmerge(*words)
    assert (result.code, f"{repos[0]}@step2 is pinned to" in result.err) == (0, True)


def test_a_recreated_repository_is_refused(
    hubmerge: Command, own_lock: tuple[Path, tuple[str, str]], api: HfApi, tmp_path: Path
) -> None:
    lock, repos = own_lock
    old = json.loads(lock.read_bytes())["experts"][0]["source"]["sha"]
    api.delete_repo(repos[0])
    words = ("merge", "--lock", lock, "--out", tmp_path / "m")
    result = hubmerge(*words)
    assert result.code == 3
    assert f"pinned to {old} and no longer resolves, and the pinned commit is gone" in result.err
    api.create_repo(repos[0])
    new = locks.commit_and_tag(api, repos[0], 2, tmp_path / "steps" / "demo" / "mnist" / "4")
    for option in ((), ("--locked",)):
        result = hubmerge(*words, *option)
        assert result.code == 3
        assert f"pinned to {old} and now resolves to {new}" in result.err
        assert f"{new}, and the pinned commit is gone" in result.err
        assert "Restore them" in result.err
    assert not (tmp_path / "m").exists()


def with_digest(pin: Pin, name: str, digest: str) -> Pin:
    """Return a consistent pin in which one file has another digest."""
    files = {**pin.files, name: digest}
    source = dataclasses.replace(pin.source, digest=files_digest(files))
    return dataclasses.replace(pin, files=files, source=source)


@pytest.mark.parametrize("name", [WEIGHTS, "open_clip_config.json", "more.json"])
def test_a_file_with_another_digest_is_refused(
    hubmerge: Command, pinned: Lock, tmp_path: Path, name: str
) -> None:
    base = with_digest(pinned.base, name, "0" * 64)
    expert = with_digest(pinned.pin(pinned.pick().experts[0]), name, "1" * 64)
    picks = [
        dataclasses.replace(pick, experts=(expert.source, pick.experts[1])) for pick in pinned.picks
    ]
    changed = dataclasses.replace(
        pinned, base=base, experts=(expert, *pinned.experts), picks=tuple(picks)
    )
    lock = locks.write_lock(changed, tmp_path / LOCK)
    result = hubmerge("merge", "--lock", lock, "--out", tmp_path / "m")
    assert result.code == 3
    for source, digest in ((base.source, "0" * 64), (expert.source, "1" * 64)):
        assert f"{name} of {source.label} has SHA-256" in result.err
        assert digest in result.err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("demo/mnist@step4",), "experts cannot be given as well"),
        (("--method", "ties"), "--method cannot"),
        (("--set", "density=1", "--dtype", "BF16"), "--set, --dtype cannot"),
        (("--base", "hubmerge/tiny-clip"), "The lock pins its base"),
        (("--base", "."), "The lock pins its base"),
        (("--pull-request",), "--pull-request needs a repository"),
        (("--pull-request", "--push", "o/m@v1"), "A pull request has no tag"),
        (("--pull-request", "--push", "o/m", "--private"), "--private"),
    ],
)
def test_options_that_the_lock_already_sets_are_refused(
    hubmerge: Command, lock: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    result = hubmerge("merge", "--lock", lock, *words, "--out", tmp_path / "m")
    assert (result.code, message in result.err) == (2, True), result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "No experts are named"),
        (("demo/mnist@step4", "--locked"), "--locked needs --lock"),
        (("demo/mnist@step4", "--policy", "last"), "--policy needs --lock"),
        (("--lock", "no/such.lock"), "There is no lock no/such.lock"),
    ],
)
def test_options_that_need_a_lock_are_refused_without_one(
    hubmerge: Command, words: tuple[str, ...], message: str
) -> None:
    result = hubmerge("merge", *words)
    assert (result.code, message in result.err) == (2, True), result.err


def test_a_base_in_a_folder_must_be_named_and_is_checked(
    hubmerge: Command, hub: Hub, local_hub: LocalHub, tmp_path: Path
) -> None:
    folder = Path(
        snapshot_download(
            "hubmerge/tiny-clip",
            endpoint=local_hub.server.url,
            token=False,
            local_dir=tmp_path / "b",
        )
    )
    content = locks.make_lock(hub, REPOS, base=ModelRef(path=folder))
    lock = locks.write_lock(content, tmp_path / LOCK)
    words = ("merge", "--lock", lock, "--out", tmp_path / "m")
    result = hubmerge(*words)
    assert (result.code, f"Add --base {folder}." in result.err) == (2, True)
    assert content.build_command("a.lock") == f"hubmerge merge --lock a.lock --base {folder}"
    result = hubmerge(*words, "--base", folder)
    assert result.code == 0, result.err
    (folder / "open_clip_config.json").write_text("{}")
    result = hubmerge(*words, "--base", folder, "--replace")
    assert (result.code, "open_clip_config.json of" in result.err) == (3, True)


def test_a_second_run_writes_nothing_and_replace_restores_the_lock(
    hubmerge: Command, lock: Path, tmp_path: Path
) -> None:
    words = ("merge", "--lock", lock, "--out", tmp_path / "m")
    assert hubmerge(*words).code == 0
    before = (tmp_path / "m" / MANIFEST_JSON).stat().st_mtime_ns
    assert hubmerge(*words).code == 0
    assert (tmp_path / "m" / MANIFEST_JSON).stat().st_mtime_ns == before
    (tmp_path / "m" / LOCK).write_text("{}")
    assert hubmerge(*words).code == 1
    assert hubmerge(*words, "--replace").code == 0
    assert (tmp_path / "m" / LOCK).read_bytes() == lock.read_bytes()


def test_the_lock_is_published_and_a_new_card_keeps_it(
    hubmerge: Command, lock: Path, api: HfApi, tmp_path: Path
) -> None:
    result = hubmerge("merge", "--lock", lock, "--out", tmp_path / "m", "--push", "locked/merged")
    assert result.code == 0, result.err
    assert hubmerge("card", "locked/merged", "--push", "locked/merged").code == 0
    downloaded = api.hf_hub_download("locked/merged", LOCK, local_dir=tmp_path / "downloaded")
    assert Path(downloaded).read_bytes() == lock.read_bytes()


def test_a_pull_request_is_opened_once_and_can_be_downloaded(
    hubmerge: Command, lock: Path, api: HfApi, tmp_path: Path
) -> None:
    words = ("merge", "--lock", lock, "--out", tmp_path / "m", "--push", "locked/proposed")
    result = hubmerge(*words, "--pull-request")
    assert (result.code, "no such repository" in result.err) == (1, True)
    assert not (tmp_path / "m").exists()

    api.create_repo("locked/proposed")
    head = api.model_info("locked/proposed").sha
    result = hubmerge(*words, "--pull-request", "--json")
    assert result.code == 0, result.err
    assert result.data["pull_request"].endswith("/locked/proposed/discussions/1")
    again = hubmerge(*words, "--pull-request")
    assert "/locked/proposed/discussions/1" in again.out.replace("\n", "")
    assert len(list(api.get_repo_discussions("locked/proposed"))) == 1
    assert api.model_info("locked/proposed").sha == head
    proposed = api.snapshot_download(
        "locked/proposed", revision="refs/pr/1", local_dir=tmp_path / "proposed"
    )
    merged = read_files(tmp_path / "m")
    assert {name: (Path(proposed) / name).read_bytes() for name in merged} == merged

    api.merge_pull_request("locked/proposed", 1)
    result = hubmerge(*words, "--pull-request", "--json")
    assert (result.code, result.data["pull_request"]) == (0, None)
    assert "nothing is proposed" in result.err


@pytest.mark.slow
def test_a_digest_of_weights_that_is_not_that_of_the_files_is_refused(
    pinned: Lock, hubmerge: Command, tmp_path: Path
) -> None:
    """It seeds masks and orders sums, so the pin and the picks together must not invent it."""
    first = pinned.pick("last").experts[0]
    invented = dataclasses.replace(first, weights="1" * 64)
    pins = tuple(
        dataclasses.replace(pin, source=dataclasses.replace(pin.source, weights="1" * 64))
        if identity(pin.source) == identity(first) else pin
        for pin in pinned.experts
    )  # fmt: skip
    picks = tuple(
        dataclasses.replace(
            pick,
            experts=tuple(invented if expert == first else expert for expert in pick.experts),
        )
        for pick in pinned.picks
    )
    path = tmp_path / "edited.lock"
    path.write_bytes(dataclasses.replace(pinned, experts=pins, picks=picks).to_bytes())
    result = hubmerge("merge", "--lock", path, "--policy", "last", "--out", tmp_path / "out")
    assert result.code == 3, result.err
    assert f"{first.label} has weights with the digest" in result.err


def test_checkpoint_folders_of_one_commit_have_separate_pins(
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
    lock = locks.write_lock(
        locks.make_lock(hub, ("locked/folders", "demo/hebrew")), tmp_path / LOCK
    )
    words = ("merge", "--lock", lock, "--locked")
    for policy, step in {"last": 8, "coordinate": 2}.items():
        out = tmp_path / policy
        result = hubmerge(*words, "--policy", policy, "--out", out)
        assert result.code == 0, result.err
        assert read(out).experts[0].folder == f"checkpoint-{step}"
        assert hubmerge("verify", out, "--rebuild").code == 0
    weights = [(tmp_path / policy / WEIGHTS).read_bytes() for policy in ("last", "coordinate")]
    assert weights[0] != weights[1]
