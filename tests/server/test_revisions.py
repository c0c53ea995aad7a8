"""Branches, tags and commits, as clients see them."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RevisionNotFoundError


def commit(api: HfApi, repo: str, text: str, branch: str = "main") -> str:
    add = CommitOperationAdd("a.txt", text.encode())
    return str(api.create_commit(repo, [add], commit_message=text, revision=branch).oid)


def tags(api: HfApi, repo: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}


def test_a_tag_is_created_once_and_never_moves(api: HfApi, repo: str) -> None:
    first, second = commit(api, repo, "1"), commit(api, repo, "2")
    api.create_tag(repo, tag="step1", revision=first)
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_tag(repo, tag="step1", revision=second)
    assert refused.value.response.status_code == 409
    api.create_tag(repo, tag="step1", revision=second, exist_ok=True)
    assert tags(api, repo) == {"step1": first}


def test_a_tag_without_revision_means_main(api: HfApi, repo: str) -> None:
    head = commit(api, repo, "1")
    api.create_tag(repo, tag="v1", tag_message="annotated")
    assert tags(api, repo) == {"v1": head}


def test_a_deleted_tag_is_gone(api: HfApi, repo: str) -> None:
    api.create_tag(repo, tag="v1")
    api.delete_tag(repo, tag="v1")
    assert tags(api, repo) == {}
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo, tag="v1")


def test_a_missing_revision_is_reported_before_a_bad_name(api: HfApi, repo: str) -> None:
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(repo, tag="-bad", revision="nope")
    with pytest.raises(BadRequestError):
        api.create_tag(repo, tag="-bad")


def test_a_revision_may_hold_a_slash(api: HfApi, repo: str) -> None:
    head = commit(api, repo, "1")
    api.create_tag(repo, tag="runs/a/step1")
    assert api.model_info(repo, revision="runs/a/step1").sha == head
    assert api.list_repo_commits(repo, revision="runs/a/step1")[0].commit_id == head
    assert api.model_info(repo, revision="refs/tags/runs/a/step1").sha == head
    assert api.list_repo_files(repo, revision="runs/a/step1") == [".gitattributes", "a.txt"]


def test_a_repository_that_is_created_again_has_none_of_the_old_commits(
    api: HfApi, repo: str
) -> None:
    old = commit(api, repo, "1")
    assert api.list_repo_files(repo, revision=old) == [".gitattributes", "a.txt"]
    api.delete_repo(repo)
    api.create_repo(repo)
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_files(repo, revision=old)
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_branches_diverge_and_are_deleted(api: HfApi, repo: str) -> None:
    start = commit(api, repo, "1")
    main = commit(api, repo, "2")
    api.create_branch(repo, branch="side", revision=start)
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_branch(repo, branch="side")
    assert refused.value.response.status_code == 409
    assert "Reference refs/heads/side already exists" in str(refused.value)
    side = commit(api, repo, "3", branch="side")
    branches = {b.name: b.target_commit for b in api.list_repo_refs(repo).branches}
    assert branches == {"main": main, "side": side}
    api.delete_branch(repo, branch="side")
    assert [b.name for b in api.list_repo_refs(repo).branches] == ["main"]


def test_main_cannot_be_deleted(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as refused:
        api.delete_branch(repo, branch="main")
    assert refused.value.response.status_code == 403


def test_refs_have_pull_requests_only_if_requested(api: HfApi, repo: str) -> None:
    assert api.list_repo_refs(repo).pull_requests is None
    assert api.list_repo_refs(repo, include_pull_requests=True).pull_requests == []


def test_commits_are_listed_in_pages_newest_first(
    api: HfApi, web: httpx2.Client, repo: str
) -> None:
    for number in range(119):
        line = {"path": "a.txt", "content": str(number)}
        body = f'{{"key":"header","value":{{"summary":"step {number}","description":"x"}}}}\n'
        body += str({"key": "file", "value": line}).replace("'", '"')
        assert web.post(f"/api/models/{repo}/commit/main", content=body).status_code == 200
    history = api.list_repo_commits(repo)
    steps = [f"step {number}" for number in reversed(range(119))]
    assert [c.title for c in history] == [*steps, "initial commit"]
    assert history[0].message == "x"
    assert history[0].authors == ["local"]
    assert len({c.commit_id for c in history}) == 120
    assert len(web.get(f"/api/models/{repo}/commits/main").json()) == 50


def test_commits_can_be_formatted_as_html(api: HfApi, repo: str) -> None:
    commit(api, repo, "a <b>")
    assert api.list_repo_commits(repo, formatted=True)[0].formatted_title == "a &lt;b&gt;"
    assert api.list_repo_commits(repo)[0].formatted_title is None


@pytest.mark.parametrize("limit", ["x", "-1", "1e9", "²", "9" * 5000])
def test_an_invalid_page_size_is_refused(web: httpx2.Client, repo: str, limit: str) -> None:
    response = web.get(f"/api/models/{repo}/commits/main", params={"limit": limit})
    assert response.status_code == 400
    assert "whole number" in response.json()["error"]
