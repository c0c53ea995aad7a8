"""Pull requests: one for one folder, whatever fails on the way; main stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import HfApi

from hubmerge.errors import HubUnreachable, NoAccess, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import Publication, publish
from hubmerge.hub.pull_request import check_proposable, propose
from tests.hub.conftest import Folder, step_of_run
from tests.hub.proxy import Fault, Proxy, lose_answer, reset, status


def merge_of(repo: str, folder: Folder, step: int, **extra: str) -> Publication:
    return replace(step_of_run(repo, folder(step, **extra), step), tag=None)


def opened(api: HfApi, repo: str) -> list[int]:
    return [pull.num for pull in api.get_repo_discussions(repo, discussion_status="open")]


def test_the_folder_is_proposed_and_nothing_else(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    head = publish(hub, merge_of(repo, folder, 4, **{"only-here.txt": "4"}))
    made = propose(hub, merge_of(repo, folder, 8))
    assert made.url == f"{hub.endpoint}/{repo}/discussions/1"
    assert api.model_info(repo).sha == head
    assert api.model_info(repo, revision="refs/pr/1").sha == made.commit
    assert set(api.list_repo_files(repo, revision="refs/pr/1")) == {
        ".gitattributes", "README.md", "config.json", "hubmerge.json", "model.safetensors",
    }  # fmt: skip


def test_an_open_one_is_found_and_a_closed_one_is_not(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    merge = merge_of(repo, folder, 4)
    made = propose(hub, merge)
    propose(hub, merge_of(repo, folder, 8))
    assert propose(hub, merge) == made
    assert proxy.count("POST .*/commit/") == 2
    api.change_discussion_status(repo, 1, "closed")
    assert propose(hub, merge) != made
    assert opened(api, repo) == [3, 2]


def test_what_main_holds_is_not_proposed(hub: Hub, repo: str, folder: Folder, api: HfApi) -> None:
    merge = merge_of(repo, folder, 4)
    made = propose(hub, merge)
    api.merge_pull_request(repo, 1)
    again = propose(hub, merge)
    assert (again.commit, again.url) == (made.commit, None)
    assert opened(api, repo) == []


@pytest.mark.parametrize("fault", [lose_answer, reset])
def test_a_broken_connection_opens_no_second_one(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy, fault: Fault
) -> None:
    proxy.fail("POST .*/commit/", fault)
    made = propose(hub, merge_of(repo, folder, 4))
    assert opened(api, repo) == [1]
    assert api.model_info(repo, revision="refs/pr/1").sha == made.commit


def test_a_hub_that_stays_down_says_so(hub: Hub, repo: str, folder: Folder, proxy: Proxy) -> None:
    proxy.fail("POST .*/commit/", status(500), times=99)
    with pytest.raises(HubUnreachable, match="HTTP 500"):
        propose(hub, merge_of(repo, folder, 4))


def test_it_is_known_beforehand_whether_one_can_be_opened(hub: Hub, repo: str) -> None:
    check_proposable(hub, repo)
    with pytest.raises(NotOnHub, match="no such repository"):
        check_proposable(hub, "hub-tests/nowhere")
    with pytest.raises(NoAccess, match="no token"):
        check_proposable(replace(hub, token=None), repo)


def test_the_same_recipe_told_anew_is_the_same_pull_request(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    first, second, other = (
        replace(merge_of(repo, folder, 4, **{"hubmerge.lock": said}), trailer={"recipe": recipe})
        for said, recipe in (("one", "r"), ("two", "r"), ("two", "s"))
    )
    opened_as, told_anew = propose(hub, first), propose(hub, second)
    assert told_anew.url == opened_as.url
    assert told_anew.commit != opened_as.commit
    assert api.model_info(repo, revision="refs/pr/1").sha == told_anew.commit
    (other.folder / "hubmerge.lock").write_text("three")
    assert propose(hub, other).url != opened_as.url
    assert opened(api, repo) == [2, 1]
