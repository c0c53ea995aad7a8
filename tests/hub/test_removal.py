"""Names and contents that are taken away: once, however often it is asked."""

from __future__ import annotations

import itertools

import pytest
from huggingface_hub import HfApi

from hubmerge.errors import HubError, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch
from hubmerge.hub.publish import publish
from hubmerge.hub.removal import delete_name, list_every_ref, purge
from hubmerge.hub.resolve import resolve
from hubmerge.refs import ModelRef
from tests.hub.conftest import Folder, step_of_run, tags
from tests.hub.proxy import Proxy, lose_answer, reset, status

_seeds = itertools.count(100)


@pytest.fixture
def seed() -> int:
    return next(_seeds)


@pytest.fixture
def steps(hub: Hub, repo: str, folder: Folder, seed: int) -> dict[int, str]:
    """The commits of two published steps, of weights that no other repository has."""
    weights = {step: folder(step, seed) for step in (4, 8)}
    return {step: publish(hub, step_of_run(repo, weights[step], step)) for step in (4, 8)}


def contents(api: HfApi, repo: str, revision: str) -> set[str]:
    infos = api.model_info(repo, revision=revision, files_metadata=True).siblings or []
    return {info.lfs.sha256 for info in infos if info.lfs}


@pytest.mark.parametrize("fault", [lose_answer, reset, status(503)])
def test_a_name_is_gone_whatever_fails_on_the_way(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi, proxy: Proxy, fault: object
) -> None:
    api.create_branch(repo, branch="step2")
    proxy.fail("DELETE .*/(tag|branch)/", fault, times=1)  # type: ignore[arg-type]
    delete_name(hub, repo, "tag", "step4")
    delete_name(hub, repo, "branch", "step2")
    delete_name(hub, repo, "tag", "step4")
    assert tags(api, repo) == {"step8": steps[8]}
    assert [branch.name for branch in api.list_repo_refs(repo).branches] == ["main"]


def test_a_tag_and_a_branch_of_one_name_are_two(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi
) -> None:
    api.create_branch(repo, branch="step4")
    delete_name(hub, repo, "branch", "step4")
    assert set(tags(api, repo)) == {"step4", "step8"}


def test_main_is_never_deleted(hub: Hub, repo: str, steps: dict[int, str]) -> None:
    with pytest.raises(HubError):
        delete_name(hub, repo, "branch", "main")


def test_every_ref_counts_also_names_that_we_would_not_use(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi
) -> None:
    api.create_branch(repo, branch="a@b", revision=steps[4])
    assert list_every_ref(hub, repo) == {
        "refs/heads/a@b": steps[4], "refs/heads/main": steps[8],
        "refs/tags/step4": steps[4], "refs/tags/step8": steps[8],
    }  # fmt: skip


def test_a_purge_deletes_contents_and_rewrites_nothing(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi, proxy: Proxy
) -> None:
    gone = contents(api, repo, "step4")
    sizes = {file.file_oid: file.size for file in api.list_lfs_files(repo)}
    proxy.fail("POST .*/lfs-files/batch", lose_answer)
    assert purge(hub, repo, gone) == sum(sizes[oid] for oid in gone)
    assert purge(hub, repo, gone) == 0
    assert {file.file_oid for file in api.list_lfs_files(repo)} == sizes.keys() - gone
    assert tags(api, repo) == {"step4": steps[4], "step8": steps[8]}
    assert fetch(hub, resolve(hub, ModelRef(repo, revision="step8")))
    with pytest.raises(NotOnHub):
        fetch(hub, resolve(hub, ModelRef(repo, revision="step4")))


def test_nothing_to_purge_asks_for_nothing(
    hub: Hub, repo: str, steps: dict[int, str], proxy: Proxy
) -> None:
    assert purge(hub, repo, {"0" * 64}) == 0
    assert proxy.count("POST .*/lfs-files/batch") == 0


def test_what_another_repository_holds_too_is_not_freed(
    hub: Hub, repo: str, steps: dict[int, str], api: HfApi
) -> None:
    other = f"{repo}-other"
    api.create_repo(other)
    path = api.hf_hub_download(repo, "model.safetensors", revision="step4")
    api.upload_file(path_or_fileobj=path, path_in_repo="same.safetensors", repo_id=other)
    assert purge(hub, repo, contents(api, repo, "step4")) == 0
    assert fetch(hub, resolve(hub, ModelRef(other)))


def test_a_purged_step_that_is_published_again_is_sent_again(
    hub: Hub, repo: str, steps: dict[int, str], folder: Folder, seed: int, api: HfApi
) -> None:
    purge(hub, repo, contents(api, repo, "step4"))
    delete_name(hub, repo, "tag", "step4")
    # Its commit is still in the history of main, trailer and all, and holds nothing any more.
    step = step_of_run(repo, folder(4, seed), 4)
    assert publish(hub, step) != steps[4]
    assert fetch(hub, resolve(hub, ModelRef(repo, revision="step4")))
