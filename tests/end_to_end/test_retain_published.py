"""`hubmerge retain` in another home keeps what locks and merges on the Hub need."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubmerge.hub.client import Hub
from hubmerge.lock import LOCK_FILE, Lock
from hubmerge.manifest import MANIFEST_JSON
from tests import locks
from tests.command_line import run_command
from tests.end_to_end.conftest import REPOS, Command, CommandResult, LocalHub
from tests.hub.conftest import tags

_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Published:
    """Copies of the two experts, the lock of a selection from them, and the id of its merge."""

    repos: tuple[str, str]
    lock: Lock
    lock_path: Path
    merge: str


@pytest.fixture
def published(api: HfApi, hub: Hub, hubmerge: Command, tmp_path: Path) -> Published:
    """A lock that needs step 2 and the last step of the first expert, pushed with its merge."""
    number = next(_numbers)
    repos = (f"published-{number}/mnist", f"published-{number}/hebrew")
    for original, copy in zip(REPOS, repos, strict=True):
        locks.copy_steps(api, original, copy, tmp_path / "steps")
    lock = locks.make_lock(hub, repos)
    picks = tuple(pick for pick in lock.picks if pick.policy != "uniform")
    needed = {expert.sha for pick in picks for expert in pick.experts}
    pins = tuple(pin for pin in lock.experts if pin.source.sha in needed)
    lock = dataclasses.replace(lock, picks=picks, experts=pins)
    path, merge = locks.write_lock(lock, tmp_path / "in" / LOCK_FILE), f"published-{number}/merge"
    result = hubmerge("merge", "--lock", path, "--out", tmp_path / "merged", "--push", merge)
    assert result.code == 0, result.err
    return Published(repos, lock, path, merge)


@pytest.fixture
def elsewhere(local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with an empty home, on the same Hub by its address."""
    home = tmp_path / "another-home"

    def run(*words: object) -> CommandResult:
        monkeypatch.setenv("HUBMERGE_HOME", str(home))
        monkeypatch.delenv("HUBMERGE_HUB", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", local_hub.server.url)
        monkeypatch.setenv("HF_TOKEN", local_hub.server.token)
        done = run_command(*words, hub=None)
        return CommandResult(done.exit_code, done.stdout, done.stderr)

    return run


def kept(plan: Any, repo: str) -> dict[str, list[str]]:
    items = (item for item in plan["verdicts"] if item["keep"] and item["repo"] == repo)
    return {item["name"]: item["reasons"] for item in items}


def test_after_a_purge_elsewhere_the_merge_can_still_be_made_and_verified(
    published: Published, elsewhere: Command, api: HfApi, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    drafted = elsewhere("retain", *published.repos, "--plan", plan, "--json")
    assert drafted.code == 0, drafted.err
    assert "Private ones of other people" in drafted.err.replace("\n", " ")
    reasons = kept(drafted.data, published.repos[0])
    assert any(f"of {published.merge}" in reason for reason in reasons["step2"])
    applied = elsewhere("retain", "--apply", plan, "--purge", "--yes", "--json")
    assert applied.code == 0, applied.err
    assert applied.data["deleted"]
    assert applied.data["unseen"] == []
    assert "step2" in tags(api, published.repos[0])
    out = tmp_path / "again"
    merged = elsewhere("merge", "--lock", published.lock_path, "--locked", "--out", out)
    assert merged.code == 0, merged.err
    verified = elsewhere("verify", published.merge, "--rebuild")
    assert verified.code == 0, verified.err


def test_a_merge_published_after_the_plan_is_followed(
    published: Published, elsewhere: Command, api: HfApi, tmp_path: Path
) -> None:
    api.delete_repo(published.merge)
    plan = tmp_path / "plan.json"
    assert elsewhere("retain", *published.repos, "--plan", plan).code == 0
    again = elsewhere(
        "merge", "--lock", published.lock_path, "--out", tmp_path / "m2", "--push", published.merge
    )
    assert again.code == 0, again.err
    before = tags(api, published.repos[0])
    result = elsewhere("retain", "--apply", plan, "--purge", "--yes")
    assert result.code == 3
    assert f"of {published.merge}" in result.err.replace("\n", " ")
    assert tags(api, published.repos[0]) == before


def test_a_merge_without_a_lock_keeps_its_experts_until_it_cannot_be_read(
    published: Published, elsewhere: Command, api: HfApi, tmp_path: Path
) -> None:
    """A model that cannot be read is shown before a purge, and stops nothing."""
    api.delete_file(LOCK_FILE, published.merge)
    drafted = elsewhere("retain", published.repos[0], "--json").data
    assert f"expert of {published.merge}" in kept(drafted, published.repos[0])["step2"]
    for name in (MANIFEST_JSON, LOCK_FILE):
        api.upload_file(path_or_fileobj=b"{", path_in_repo=name, repo_id=published.merge)
    plan = tmp_path / "plan.json"
    assert elsewhere("retain", *published.repos, "--plan", plan).code == 0
    result = elsewhere("retain", "--apply", plan, "--purge", "--yes", "--json")
    assert result.code == 0, result.err
    assert "Not seen:" in result.err
    assert any(published.merge in sentence for sentence in result.data["unseen"])
