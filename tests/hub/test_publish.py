"""Publishing: one commit, then the tag, whatever fails on the way; a tag never moves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.errors import HubError, HubUnreachable, IntegrityError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import publish
from tests.hub.conftest import Folder, commits_with, step_of_run, tags
from tests.hub.proxy import (
    Answer,
    Drop,
    Fault,
    Forward,
    Proxy,
    first,
    hang,
    lose_answer,
    reset,
    say,
    status,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
EVERY_REQUEST = (
    "GET .*/refs", "GET .*/commits/", "GET .*/tree/", "POST .*/preupload/", "POST .*/objects/batch",
    "PUT .*sig=", "POST .*/validate-yaml", "POST .*/commit/", "POST .*/tag/",
)  # fmt: skip


def test_a_step_is_one_commit_and_one_tag(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    step = step_of_run(repo, folder(4, **{"sub/notes.txt": "deep", ".hidden": "stays"}), 4)
    commit = publish(hub, step)
    assert commits_with(api, step) == [commit]
    assert tags(api, repo) == {"step4": commit}
    assert set(api.list_repo_files(repo, revision="step4")) == {
        ".gitattributes", "README.md", "config.json", "hubmerge.json", "model.safetensors",
        "sub/notes.txt",
    }  # fmt: skip
    assert proxy.count("POST .*/commit/") == 1


def test_the_next_step_holds_nothing_of_the_last(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    publish(hub, step_of_run(repo, folder(4, **{"only-here.txt": "4"}), 4))
    publish(hub, step_of_run(repo, folder(8), 8))
    assert "only-here.txt" in api.list_repo_files(repo, revision="step4")
    assert "only-here.txt" not in api.list_repo_files(repo, revision="step8")


def test_again_changes_nothing(hub: Hub, repo: str, folder: Folder, api: HfApi) -> None:
    step = step_of_run(repo, folder(4), 4)
    commit = publish(hub, step)
    publish(hub, step_of_run(repo, folder(8), 8))
    before = api.list_repo_commits(repo)
    assert publish(hub, step) == commit
    assert [one.commit_id for one in api.list_repo_commits(repo)] == [
        one.commit_id for one in before
    ]


def test_without_a_tag_a_folder_is_committed_once(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    merge = replace(step_of_run(repo, folder(4), 4), tag=None)
    assert publish(hub, merge) == publish(hub, merge)
    assert len(commits_with(api, merge)) == 1
    assert tags(api, repo) == {}


def test_what_main_holds_already_is_tagged_there(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    step = step_of_run(repo, folder(4), 4)
    commit = publish(hub, step)
    again = replace(step, tag="best", trailer={"other": "trailer"})
    assert publish(hub, again) == commit
    assert tags(api, repo) == {"step4": commit, "best": commit}


@pytest.mark.parametrize("differs", ["weights", "small file", "one file more"])
def test_a_tag_never_moves(hub: Hub, repo: str, folder: Folder, api: HfApi, differs: str) -> None:
    commit = publish(hub, step_of_run(repo, folder(4), 4))
    other = folder(4, seed=differs == "weights")
    if differs == "small file":
        (other / "config.json").write_text('{"model_type": "tess"}')
    if differs == "one file more":
        (other / "more.txt").write_text("more")
    with pytest.raises(IntegrityError, match="stands for other bytes") as caught:
        publish(hub, step_of_run(repo, other, 4, run="r2"))
    assert caught.value.exit_code == 3
    assert tags(api, repo) == {"step4": commit}


def test_a_rival_takes_the_tag_first(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    taken = api.list_repo_refs(repo).branches[0].target_commit
    rival = lambda: api.create_tag(repo, tag="step4", revision=taken)  # noqa: E731
    proxy.fail("POST .*/tag/", first(rival))
    with pytest.raises(IntegrityError, match="stands for other bytes"):
        publish(hub, step_of_run(repo, folder(4), 4))
    assert tags(api, repo) == {"step4": taken}


def test_a_lost_race_for_main_is_run_again(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    rival = lambda: api.create_commit(  # noqa: E731
        repo, [CommitOperationAdd("rival.txt", b"first")], commit_message="rival"
    )
    proxy.fail("POST .*/commit/", first(rival))
    step = step_of_run(repo, folder(4), 4)
    commit = publish(hub, step)
    assert [one.title for one in api.list_repo_commits(repo)][:2] == ["Step 4", "rival"]
    assert commits_with(api, step) == [commit]
    assert "rival.txt" not in api.list_repo_files(repo, revision="step4")


def test_the_tag_means_our_commit_whatever_main_is_by_then(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    rival = lambda: api.create_commit(  # noqa: E731
        repo, [CommitOperationAdd("rival.txt", b"later")], commit_message="rival"
    )
    proxy.fail("POST .*/tag/", first(rival))
    commit = publish(hub, step_of_run(repo, folder(4), 4))
    assert api.list_repo_commits(repo)[0].title == "rival"
    assert tags(api, repo) == {"step4": commit}


def test_the_same_bytes_of_another_run_are_another_commit(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    once = replace(step_of_run(repo, folder(4), 4), tag=None)
    first_time = publish(hub, once)
    publish(hub, step_of_run(repo, folder(8), 8))
    second_time = publish(hub, replace(once, trailer={"run": "r2"}))
    assert second_time != first_time
    assert api.list_repo_commits(repo)[0].commit_id == second_time


def test_one_failure_of_every_request(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    for request in EVERY_REQUEST:
        proxy.fail(request, status(503, "<html>busy</html>"))
    step = step_of_run(repo, folder(99, seed=99), 99)  # weights that the Hub has never seen
    commit = publish(hub, step)
    assert not proxy.faults
    assert commits_with(api, step) == [commit]
    assert tags(api, repo) == {"step99": commit}


@pytest.mark.parametrize("fault", [lose_answer, reset])
@pytest.mark.parametrize("request_", ["POST .*/commit/", "POST .*/tag/"])
def test_a_broken_connection_sends_nothing_twice(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy, request_: str, fault: Fault
) -> None:
    proxy.fail(request_, fault)
    step = step_of_run(repo, folder(4), 4)
    commit = publish(hub, step)
    assert commits_with(api, step) == [commit]
    assert tags(api, repo) == {"step4": commit}
    # An answer that was lost is looked up, not asked for again.
    assert proxy.count(request_) == (1 if fault is lose_answer else 2)


def test_a_silent_hub_is_left_at_the_deadline(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    proxy.fail("POST .*/commit/", hang(proxy))
    step = step_of_run(repo, folder(4), 4)
    commit = publish(replace(hub, deadline_s=1.0), step)
    assert commits_with(api, step) == [commit]


def test_a_hub_that_stays_down_says_so(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    proxy.fail("POST .*/commit/", status(500), times=99)
    with pytest.raises(HubUnreachable, match=r"HTTP 500.*committing 'Step 4'") as caught:
        publish(hub, step_of_run(repo, folder(4), 4))
    assert caught.value.exit_code == 75
    assert tags(api, repo) == {}


def test_killed_between_commit_and_tag(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    step = step_of_run(repo, folder(4), 4)
    words = [
        "import os, sys; from pathlib import Path",
        "from hubmerge.hub.client import Hub; from tests.hub.conftest import step_of_run",
        "from hubmerge.hub.publish import publish",
        "hub = Hub(sys.argv[1], os.environ['TOKEN'], Path(sys.argv[2]), 'the test Hub')",
        "publish(hub, step_of_run(sys.argv[3], Path(sys.argv[4]), 4))",
    ]
    command = [sys.executable, "-c", "\n".join(words), hub.endpoint, hub.cache, repo, step.folder]

    def kill(forward: Forward) -> Answer:
        os.kill(process.pid, signal.SIGKILL)
        raise Drop

    proxy.fail("POST .*/tag/", kill)
    environment = {**os.environ, "TOKEN": str(hub.token)}
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, env=environment)
    assert process.wait(timeout=30) == -signal.SIGKILL
    [landed] = commits_with(api, step)
    assert tags(api, repo) == {}

    assert publish(hub, step) == landed
    assert commits_with(api, step) == [landed]
    assert tags(api, repo) == {"step4": landed}


def test_sixteen_rivals_all_land(hub: Hub, repo: str, folder: Folder, api: HfApi) -> None:
    steps = [step_of_run(repo, folder(number), number) for number in range(1, 17)]
    with ThreadPoolExecutor(16) as pool:
        landed = dict(
            zip(range(1, 17), pool.map(lambda step: publish(hub, step), steps), strict=True)
        )
    assert tags(api, repo) == {f"step{number}": landed[number] for number in landed}
    history = [one.commit_id for one in api.list_repo_commits(repo)]
    assert len(history) == 17  # the repository's own first commit, and one of each
    assert set(landed.values()) == set(history[:-1])
    for number, step in enumerate(steps, start=1):
        data = api.hf_hub_download(repo, "hubmerge.json", revision=f"step{number}")
        assert Path(data).read_bytes() == (step.folder / "hubmerge.json").read_bytes()


def test_a_hub_that_stores_other_bytes_gets_no_tag(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    before = api.list_repo_refs(repo).branches[0].target_commit
    proxy.fail("POST .*/commit/", say(b'{"commitOid": "%s", "commitUrl": "%s/%s/commit/%s"}' % (
        before.encode(), proxy.url.encode(), repo.encode(), before.encode())))  # fmt: skip
    with pytest.raises(IntegrityError):
        publish(hub, step_of_run(repo, folder(4), 4))
    assert tags(api, repo) == {}


def test_a_card_that_cannot_be_read_is_refused_in_the_hubs_words(
    hub: Hub, repo: str, folder: Folder
) -> None:
    broken = folder(4)
    (broken / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(HubError, match=r"Invalid metadata in README\.md") as caught:
        publish(hub, step_of_run(repo, broken, 4))
    assert caught.value.exit_code == 1


def test_a_long_wait_is_not_waited_for(hub: Hub, repo: str, folder: Folder, proxy: Proxy) -> None:
    proxy.fail("POST .*/commit/", status(429, Retry_After="3600"))
    with pytest.raises(HubUnreachable) as caught:
        publish(hub, step_of_run(repo, folder(4), 4))
    assert "It asks to wait 3600 s." in caught.value.hint


def test_nothing_to_publish(hub: Hub, repo: str, tmp_path: Path, api: HfApi) -> None:
    with pytest.raises(UsageError, match="nothing to publish"):
        publish(hub, step_of_run(repo, tmp_path / "missing", 4))
    assert len(api.list_repo_commits(repo)) == 1


@pytest.mark.parametrize("name", ["a\\b.json", "line\nbreak.json", "-rf.json", "\u202egpj.json"])
def test_hostile_file_names_are_not_sent(
    hub: Hub, repo: str, folder: Folder, proxy: Proxy, name: str
) -> None:
    with pytest.raises(UsageError):
        publish(hub, step_of_run(repo, folder(4, **{name: "x"}), 4))
    assert proxy.count("POST") == 0


def test_no_such_repository(hub: Hub, folder: Folder) -> None:
    with pytest.raises(NotOnHub, match="has no such repository"):
        publish(hub, step_of_run("hub-tests/nowhere", folder(4), 4))


def test_an_older_commit_of_an_untagged_folder_is_not_main(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    card = replace(step_of_run(repo, folder(4), 4), tag=None)
    other = replace(step_of_run(repo, folder(8), 8), tag=None)
    for publication in (card, other, card):
        commit = publish(hub, publication)
        assert api.model_info(repo).sha == commit
