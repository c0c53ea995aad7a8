"""Deleting refs and large files: once, however often it is called."""

from __future__ import annotations

import itertools

import pytest
from huggingface_hub import HfApi

from hubmerge.errors import HubError, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch
from hubmerge.hub.publish import publish
from hubmerge.hub.removal import delete_ref, list_all_refs, purge
from hubmerge.hub.resolve import resolve
from hubmerge.refs import ModelRef
from tests.hub.conftest import Folder, step_publication, tags
from tests.hub.proxy import Proxy, lose_response, reset_connection, status

_seeds = itertools.count(100)


@pytest.fixture
def seed() -> int:
    return next(_seeds)


@pytest.fixture
def steps(hub: Hub, repo: str, folder: Folder, seed: int) -> dict[int, str]:
    """The commits of two published steps, with weights that no other repository has."""
    weights = {step: folder(step, seed) for step in (4, 8)}
    return {step: publish(hub, step_publication(repo, weights[step], step)) for step in (4, 8)}


def contents(api: HfApi, repo: str, revision: str) -> set[str]:
    infos = api.model_info(repo, revision=revision, files_metadata=True).siblings or []
    return {info.lfs.sha256 for info in infos if info.lfs}


@pytest.mark.parametrize("fault", [lose_response, reset_connection, status(503)])
def test_a_ref_is_deleted_whatever_fails_on_the_way(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi, proxy: Proxy, fault: object
) -> None:
    api.create_branch(repo, branch="step2")
    proxy.fail("DELETE .*/(tag|branch)/", fault, times=1)  # type: ignore[arg-type]
    delete_ref(hub, repo, "tag", "step4")
    delete_ref(hub, repo, "branch", "step2")
    delete_ref(hub, repo, "tag", "step4")
    assert tags(api, repo) == {"step8": steps[8]}
    assert [branch.name for branch in api.list_repo_refs(repo).branches] == ["main"]


def test_a_tag_and_a_branch_may_have_the_same_name(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi
) -> None:
    api.create_branch(repo, branch="step4")
    delete_ref(hub, repo, "branch", "step4")
    assert set(tags(api, repo)) == {"step4", "step8"}


def test_main_is_never_deleted(hub: Hub, repo: str, steps: dict[int, str]) -> None:
    with pytest.raises(HubError):
        delete_ref(hub, repo, "branch", "main")


def test_all_refs_include_names_that_hubmerge_refuses(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi
) -> None:
    api.create_branch(repo, branch="a@b", revision=steps[4])
    assert list_all_refs(hub, repo) == {
        "refs/heads/a@b": steps[4], "refs/heads/main": steps[8],
        "refs/tags/step4": steps[4], "refs/tags/step8": steps[8],
    }  # fmt: skip


def test_a_purge_deletes_files_and_keeps_the_history(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi, proxy: Proxy
) -> None:
    gone = contents(api, repo, "step4")
    sizes = {file.file_oid: file.size for file in api.list_lfs_files(repo)}
    proxy.fail("POST .*/lfs-files/batch", lose_response)
    assert purge(hub, repo, gone) == sum(sizes[oid] for oid in gone)
    assert purge(hub, repo, gone) == 0
    assert {file.file_oid for file in api.list_lfs_files(repo)} == sizes.keys() - gone
    assert tags(api, repo) == {"step4": steps[4], "step8": steps[8]}
    assert fetch(hub, resolve(hub, ModelRef(repo, revision="step8")))
    with pytest.raises(NotOnHub):
        fetch(hub, resolve(hub, ModelRef(repo, revision="step4")))


def test_a_purge_without_files_sends_no_request(
    hub: Hub, repo: str, steps: dict[int, str], proxy: Proxy
) -> None:
    assert purge(hub, repo, {"0" * 64}) == 0
    assert proxy.count("POST .*/lfs-files/batch") == 0


def test_files_of_another_repository_are_not_freed(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi
) -> None:
    other = f"{repo}-other"
    api.create_repo(other)
    path = api.hf_hub_download(repo, "model.safetensors", revision="step4")
    api.upload_file(path_or_fileobj=path, path_in_repo="same.safetensors", repo_id=other)
    assert purge(hub, repo, contents(api, repo, "step4")) == 0
    assert fetch(hub, resolve(hub, ModelRef(other)))


def test_a_purged_step_can_be_published_again(
    hub: Hub, repo: str, steps: dict[int, str], folder: Folder, seed: int, api: HfApi
) -> None:
    purge(hub, repo, contents(api, repo, "step4"))
    delete_ref(hub, repo, "tag", "step4")
    # Its commit is still in the history of main, with the same trailer, but its files are gone.
    step = step_publication(repo, folder(4, seed), 4)
    assert publish(hub, step) != steps[4]
    assert fetch(hub, resolve(hub, ModelRef(repo, revision="step4")))
