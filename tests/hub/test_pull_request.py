"""One pull request for one folder, whatever fails on the way; main stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import HfApi

from hubmerge.errors import HubUnreachable, NoAccess, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import Publication, publish
from hubmerge.hub.pull_request import check_can_open_pull_request, open_pull_request
from tests.hub.conftest import Folder, step_publication
from tests.hub.proxy import Fault, Proxy, lose_response, reset_connection, status


def merge_of(repo: str, folder: Folder, step: int, **extra: str) -> Publication:
    return replace(step_publication(repo, folder(step, **extra), step), tag=None)


def open_numbers(api: HfApi, repo: str) -> list[int]:
    return [pull.num for pull in api.get_repo_discussions(repo, discussion_status="open")]


def test_the_pull_request_has_exactly_the_files_of_the_folder(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    head = publish(hub, merge_of(repo, folder, 4, **{"only-here.txt": "4"}))
    pull = open_pull_request(hub, merge_of(repo, folder, 8))
    assert pull.url == f"{hub.endpoint}/{repo}/discussions/1"
    assert api.model_info(repo).sha == head
    assert api.model_info(repo, revision="refs/pr/1").sha == pull.commit
    assert set(api.list_repo_files(repo, revision="refs/pr/1")) == {
        ".gitattributes", "README.md", "config.json", "hubmerge.json", "model.safetensors",
    }  # fmt: skip


def test_an_open_pull_request_is_found_and_a_closed_one_is_not(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    merge = merge_of(repo, folder, 4)
    pull = open_pull_request(hub, merge)
    open_pull_request(hub, merge_of(repo, folder, 8))
    assert open_pull_request(hub, merge) == pull
    assert proxy.count("POST .*/commit/") == 2
    api.change_discussion_status(repo, 1, "closed")
    assert open_pull_request(hub, merge) != pull
    assert open_numbers(api, repo) == [3, 2]


def test_the_files_of_main_need_none(hub: Hub, repo: str, folder: Folder, api: HfApi) -> None:
    merge = merge_of(repo, folder, 4)
    pull = open_pull_request(hub, merge)
    api.merge_pull_request(repo, 1)
    again = open_pull_request(hub, merge)
    assert (again.commit, again.url) == (pull.commit, None)
    assert open_numbers(api, repo) == []


@pytest.mark.parametrize("fault", [lose_response, reset_connection])
def test_a_broken_connection_opens_no_second_pull_request(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy, fault: Fault
) -> None:
    proxy.fail("POST .*/commit/", fault)
    pull = open_pull_request(hub, merge_of(repo, folder, 4))
    assert open_numbers(api, repo) == [1]
    assert api.model_info(repo, revision="refs/pr/1").sha == pull.commit


def test_an_outage_is_an_error(
    hub: Hub, repo: str, folder: Folder, proxy: Proxy, waits: list[float]
) -> None:
    proxy.fail("POST .*/commit/", status(500), times=99)
    with pytest.raises(HubUnreachable, match="HTTP 500"):
        open_pull_request(hub, merge_of(repo, folder, 4))
    assert waits


def test_it_is_checked_beforehand_that_one_can_be_opened(hub: Hub, repo: str) -> None:
    check_can_open_pull_request(hub, repo)
    with pytest.raises(NotOnHub, match="no such repository"):
        check_can_open_pull_request(hub, "hub-tests/nowhere")
    with pytest.raises(NoAccess, match="no token"):
        check_can_open_pull_request(replace(hub, sign_in=lambda: None), repo)


def test_another_lock_of_the_same_recipe_updates_the_pull_request(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    first, second, other = (
        replace(merge_of(repo, folder, 4, **{"hubmerge.lock": text}), trailer={"recipe": recipe})
        for text, recipe in (("one", "r"), ("two", "r"), ("two", "s"))
    )
    pull, updated = open_pull_request(hub, first), open_pull_request(hub, second)
    assert updated.url == pull.url
    assert updated.commit != pull.commit
    assert api.model_info(repo, revision="refs/pr/1").sha == updated.commit
    (other.folder / "hubmerge.lock").write_text("three")
    assert open_pull_request(hub, other).url != pull.url
    assert open_numbers(api, repo) == [2, 1]
