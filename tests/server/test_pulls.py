"""Pull requests: commits next to main, under their own ref, until they are merged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from hubmerge.server import ServerState
from hubmerge.server.discussion_store import Discussions


def propose(api: HfApi, repo: str, text: str = "new", **more: object) -> CommitInfo:
    add = CommitOperationAdd("a.txt", text.encode())
    return api.create_commit(repo, [add], commit_message=text, create_pr=True, **more)  # type: ignore[arg-type]


def open_pulls(api: HfApi, repo: str) -> list[int]:
    pulls = api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open")
    return [pull.num for pull in pulls]


def test_a_pull_request_holds_its_files_and_main_stays(
    api: HfApi, repo: str, tmp_path: Path
) -> None:
    api.upload_file(path_or_fileobj=b"old", path_in_repo="old.txt", repo_id=repo)
    head, weights = api.model_info(repo).sha, os.urandom(1 << 20)
    (tmp_path / "w").write_bytes(weights)
    changes = [
        CommitOperationAdd("model.safetensors", tmp_path / "w"),
        CommitOperationAdd("config.json", b"{}"),
        CommitOperationDelete("old.txt"),
    ]
    api.preupload_lfs_files(repo, changes[:2], create_pr=True)  # type: ignore[arg-type]
    proposed = api.create_commit(
        repo, changes, commit_message="t", commit_description="d", create_pr=True,
        parent_commit=head,
    )  # fmt: skip
    assert (proposed.pr_num, proposed.pr_revision) == (1, "refs/pr/1")
    assert proposed.pr_url == f"{api.endpoint}/{repo}/discussions/1"
    assert api.model_info(repo).sha == head
    assert api.list_repo_files(repo) == [".gitattributes", "old.txt"]
    local = Path(api.snapshot_download(repo, revision="refs/pr/1", cache_dir=tmp_path / "c"))
    assert {path.name for path in local.iterdir()} == {
        ".gitattributes", "config.json", "model.safetensors",
    }  # fmt: skip
    assert (local / "model.safetensors").read_bytes() == weights
    first, second = api.list_repo_commits(repo, revision="refs/pr/1")[:2]
    assert (first.commit_id, first.title, first.message) == (proposed.oid, "t", "d")
    assert second.commit_id == head


def test_pull_requests_are_numbered_and_listed_newest_first(api: HfApi, repo: str) -> None:
    for text in ("one", "two", "three"):
        propose(api, repo, text)
    pulls = list(api.get_repo_discussions(repo))
    assert [(pull.num, pull.title, pull.status) for pull in pulls] == [
        (3, "three", "open"), (2, "two", "open"), (1, "one", "open"),
    ]  # fmt: skip
    assert {pull.author for pull in pulls} == {"local"}
    assert all(pull.is_pull_request and pull.repo_id == repo for pull in pulls)
    assert list(api.get_repo_discussions(repo, discussion_type="discussion")) == []
    assert list(api.get_repo_discussions(repo, author="nobody")) == []
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert {pull.ref for pull in refs.pull_requests or []} == {f"refs/pr/{n}" for n in (1, 2, 3)}
    assert [branch.name for branch in refs.branches] == ["main"]
    assert api.list_repo_refs(repo).pull_requests is None


def test_pull_requests_are_listed_in_pages(api: HfApi, repo: str) -> None:
    for number in range(52):
        propose(api, repo, str(number))
    assert open_pulls(api, repo) == list(range(52, 0, -1))


def test_a_pull_request_takes_more_commits(api: HfApi, repo: str) -> None:
    first = propose(api, repo, "one")
    add = CommitOperationAdd("b.txt", b"b")
    second = api.create_commit(
        repo, [add], commit_message="more", revision="refs/pr/1", parent_commit=first.oid
    )
    assert api.list_repo_files(repo, revision="refs/pr/1") == [".gitattributes", "a.txt", "b.txt"]
    details = api.get_discussion_details(repo, 1)
    assert (details.title, details.target_branch, details.merge_commit_oid) == (
        "one", "refs/heads/main", None,
    )  # fmt: skip
    assert details.events[-1].oid == second.oid  # type: ignore[attr-defined]
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"c", path_in_repo="c", repo_id=repo, revision="refs/pr/2")


def test_a_pull_request_is_merged_once(api: HfApi, repo: str) -> None:
    proposed = propose(api, repo)
    api.merge_pull_request(repo, 1)
    assert api.model_info(repo).sha == proposed.oid
    assert api.get_discussion_details(repo, 1).merge_commit_oid == proposed.oid
    assert open_pulls(api, repo) == []
    for again in (
        lambda: api.merge_pull_request(repo, 1),
        lambda: api.change_discussion_status(repo, 1, "closed"),
    ):
        with pytest.raises(HfHubHTTPError, match="merged"):
            again()


def test_a_pull_request_is_not_merged_after_main_has_moved(api: HfApi, repo: str) -> None:
    propose(api, repo)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)
    head = api.model_info(repo).sha
    with pytest.raises(HfHubHTTPError, match="moved on"):
        api.merge_pull_request(repo, 1)
    assert api.model_info(repo).sha == head
    assert open_pulls(api, repo) == [1]


def test_a_closed_pull_request_can_be_reopened(api: HfApi, repo: str) -> None:
    propose(api, repo)
    assert api.change_discussion_status(repo, 1, "closed").new_status == "closed"
    assert open_pulls(api, repo) == []
    with pytest.raises(HfHubHTTPError, match="closed"):
        api.merge_pull_request(repo, 1)
    api.change_discussion_status(repo, 1, "open")
    assert open_pulls(api, repo) == [1]


def test_a_reader_cannot_open_or_merge(reader: HfApi, api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError):
        propose(reader, repo)
    propose(api, repo)
    assert open_pulls(reader, repo) == [1]
    with pytest.raises(HfHubHTTPError):
        reader.merge_pull_request(repo, 1)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("discussions/2", None, 404),
        ("discussions/..%2f..", None, 404),
        ("discussions/1/merge", "{}", 404),
        ("discussions/1/status", '{"status": "merged"}', 400),
        ("commit/other?create_pr=1", '{"key": "header", "value": {"summary": "m"}}', 400),
    ],
)
def test_an_invalid_request_is_refused(
    web: httpx2.Client, repo: str, path: str, body: str | None, status: int
) -> None:
    address = f"/api/models/{repo}/{path}"
    answer = web.get(address) if body is None else web.post(address, content=body)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_a_failed_commit_opens_no_pull_request(web: httpx2.Client, api: HfApi, repo: str) -> None:
    lines = [
        {"key": "header", "value": {"summary": "m"}},
        {"key": "deletedFile", "value": {"path": "none"}},
    ]
    body = "\n".join(map(json.dumps, lines))
    assert web.post(f"/api/models/{repo}/commit/main?create_pr=1", content=body).status_code == 404
    assert open_pulls(api, repo) == []


@pytest.mark.slow
def test_the_hf_command_lists_and_merges_them(hub: ServerState, api: HfApi, repo: str) -> None:
    proposed = propose(api, repo)
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip

    def hf(*words: str) -> str:
        command = [str(Path(sys.executable).with_name("hf")), "discussions", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "new" in hf("list", repo)
    assert "new" in hf("info", repo, "1")
    hf("merge", repo, "1", "--yes")
    assert api.model_info(repo).sha == proposed.oid


def test_a_folder_becomes_a_pull_request_by_xet(
    api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 9000)
    for kind in ("dataset", "space"):
        sdk = {"space_sdk": "static"} if kind == "space" else {}
        api.create_repo("tests/pr-by-xet", repo_type=kind, **sdk)
        info = api.upload_folder(
            repo_id="tests/pr-by-xet", folder_path=tmp_path, repo_type=kind, create_pr=True
        )
        assert info.pr_num == 1
        details = api.get_discussion_details("tests/pr-by-xet", 1, repo_type=kind)
        assert (details.status, details.events[-1].oid) == ("draft", info.oid)  # type: ignore[attr-defined]
        api.merge_pull_request("tests/pr-by-xet", 1, repo_type=kind, comment="Thanks")
        assert api.repo_info("tests/pr-by-xet", repo_type=kind).sha == info.oid


def test_a_discussion_has_comments_that_can_be_edited_and_hidden(api: HfApi, repo: str) -> None:
    opened = api.create_discussion(repo, "A question", description="Which step?")
    assert (opened.num, opened.is_pull_request, opened.status) == (1, False, "open")
    added = api.comment_discussion(repo, 1, "Step 4.")
    edited = api.edit_discussion_comment(repo, 1, added.id, "Step 8.")
    assert (edited.content, edited.edited) == ("Step 8.", True)
    api.rename_discussion(repo, 1, "Answered")
    api.change_discussion_status(repo, 1, "closed", comment="Done")
    hidden = api.hide_discussion_comment(repo, 1, added.id)
    assert (hidden.hidden, "Step" in hidden.content) == (True, False)
    details = api.get_discussion_details(repo, 1)
    assert (details.title, details.status) == ("Answered", "closed")
    kinds = [event.type for event in details.events]
    assert kinds == ["comment", "comment", "title-change", "comment", "status-change"]
    assert details.events[0].content == "Which step?"  # type: ignore[attr-defined]
    propose(api, repo)
    assert [item.num for item in api.get_repo_discussions(repo)] == [2, 1]
    assert [item.num for item in api.get_repo_discussions(repo, discussion_type="discussion")] == [
        1
    ]
    with pytest.raises(HfHubHTTPError, match="Discussion 1 is closed"):
        api.merge_pull_request(repo, 1)
    with pytest.raises(HfHubHTTPError, match="no comment"):
        api.edit_discussion_comment(repo, 1, "f" * 24, "x")
    with pytest.raises(HfHubHTTPError, match="3 to 200"):
        api.create_discussion(repo, "no")


def test_pull_requests_of_an_old_version_are_read(tmp_path: Path) -> None:
    item = {"number": 1, "title": "t", "author": "me", "opened": "2026-01-02T00:00:00+00:00"}
    (tmp_path / "pulls.json").write_text(json.dumps([{**item, "status": "open"}]))
    (old,) = Discussions(tmp_path).all()
    assert (old.ref, old.is_pull_request, old.base, old.events) == ("refs/pr/1", True, "", ())


def test_a_squash_leaves_one_commit_and_the_tags(api: HfApi, repo: str) -> None:
    for name in ("a", "b"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id=repo)
    api.create_tag(repo, tag="step1")
    before = api.list_repo_commits(repo)
    api.super_squash_history(repo, commit_message="One")
    (after,) = api.list_repo_commits(repo)
    assert after.title == "One"
    assert api.list_repo_files(repo) == [".gitattributes", "a", "b"]
    assert [c.commit_id for c in api.list_repo_commits(repo, revision="step1")] == [
        commit.commit_id for commit in before
    ]
    with pytest.raises(RevisionNotFoundError):
        api.super_squash_history(repo, branch="other")
