"""Publishing makes one commit, then the tag, whatever fails on the way; a tag never moves."""

from __future__ import annotations

import itertools
import json
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
from hubmerge.hub.publish import ensure_once, publish
from tests.hub.conftest import Folder, commits_with, step_publication, tags
from tests.hub.proxy import (
    ConnectionDropped,
    Fault,
    Forward,
    Proxy,
    Response,
    hang,
    lose_response,
    replace_body,
    reset_connection,
    run_first,
    status,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
EVERY_REQUEST = (
    "GET .*/revision/", "GET .*/commits/", "GET .*/tree/", "POST .*/preupload/",
    "POST .*/objects/batch", "PUT .*sig=", "POST .*/validate-yaml",
    "POST .*/commit/", "POST .*/tag/",
)  # fmt: skip


def test_a_step_is_one_commit_and_one_tag(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    step = step_publication(repo, folder(4, **{"sub/notes.txt": "deep", ".hidden": "stays"}), 4)
    commit = publish(hub, step)
    assert commits_with(api, step) == [commit]
    assert tags(api, repo) == {"step4": commit}
    assert set(api.list_repo_files(repo, revision="step4")) == {
        ".gitattributes", "README.md", "config.json", "hubmerge.json", "model.safetensors",
        "sub/notes.txt",
    }  # fmt: skip
    assert proxy.count("POST .*/commit/") == 1


def test_files_of_the_last_step_are_removed(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    publish(hub, step_publication(repo, folder(4, **{"only-here.txt": "4"}), 4))
    publish(hub, step_publication(repo, folder(8), 8))
    assert "only-here.txt" in api.list_repo_files(repo, revision="step4")
    assert "only-here.txt" not in api.list_repo_files(repo, revision="step8")


def test_publishing_again_changes_nothing(hub: Hub, repo: str, folder: Folder, api: HfApi) -> None:
    step = step_publication(repo, folder(4), 4)
    commit = publish(hub, step)
    publish(hub, step_publication(repo, folder(8), 8))
    before = [item.commit_id for item in api.list_repo_commits(repo)]
    assert publish(hub, step) == commit
    assert [item.commit_id for item in api.list_repo_commits(repo)] == before


def test_without_a_tag_a_folder_is_committed_once(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    merge = replace(step_publication(repo, folder(4), 4), tag=None)
    assert publish(hub, merge) == publish(hub, merge)
    assert len(commits_with(api, merge)) == 1
    assert tags(api, repo) == {}


def test_the_files_of_main_are_tagged_without_a_commit(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    step = step_publication(repo, folder(4), 4)
    commit = publish(hub, step)
    again = replace(step, tag="best", trailer={"other": "trailer"})
    assert publish(hub, again) == commit
    assert tags(api, repo) == {"step4": commit, "best": commit}


@pytest.mark.parametrize("differs", ["weights", "small file", "one file more"])
def test_a_tag_never_moves(hub: Hub, repo: str, folder: Folder, api: HfApi, differs: str) -> None:
    commit = publish(hub, step_publication(repo, folder(4), 4))
    other = folder(4, seed=differs == "weights")
    if differs == "small file":
        (other / "config.json").write_text('{"model_type": "tess"}')
    if differs == "one file more":
        (other / "more.txt").write_text("more")
    with pytest.raises(IntegrityError, match="has other bytes") as caught:
        publish(hub, step_publication(repo, other, 4, run="r2"))
    assert caught.value.exit_code == 3
    assert tags(api, repo) == {"step4": commit}


def test_a_tag_that_a_rival_sets_first_is_an_error(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    head = api.list_repo_refs(repo).branches[0].target_commit
    proxy.fail("POST .*/tag/", run_first(lambda: api.create_tag(repo, tag="step4", revision=head)))
    with pytest.raises(IntegrityError, match="has other bytes"):
        publish(hub, step_publication(repo, folder(4), 4))
    assert tags(api, repo) == {"step4": head}


def test_a_lost_race_for_main_is_retried(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    rival = lambda: api.create_commit(  # noqa: E731
        repo, [CommitOperationAdd("rival.txt", b"first")], commit_message="rival"
    )
    proxy.fail("POST .*/commit/", run_first(rival))
    step = step_publication(repo, folder(4), 4)
    commit = publish(hub, step)
    assert [item.title for item in api.list_repo_commits(repo)][:2] == ["Step 4", "rival"]
    assert commits_with(api, step) == [commit]
    assert "rival.txt" not in api.list_repo_files(repo, revision="step4")


def test_the_tag_points_to_our_commit_after_main_has_moved(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    rival = lambda: api.create_commit(  # noqa: E731
        repo, [CommitOperationAdd("rival.txt", b"later")], commit_message="rival"
    )
    proxy.fail("POST .*/tag/", run_first(rival))
    commit = publish(hub, step_publication(repo, folder(4), 4))
    assert api.list_repo_commits(repo)[0].title == "rival"
    assert tags(api, repo) == {"step4": commit}


def test_the_same_bytes_of_another_run_get_their_own_commit(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    once = replace(step_publication(repo, folder(4), 4), tag=None)
    first_time = publish(hub, once)
    publish(hub, step_publication(repo, folder(8), 8))
    second_time = publish(hub, replace(once, trailer={"run": "r2"}))
    assert second_time != first_time
    assert api.list_repo_commits(repo)[0].commit_id == second_time


@pytest.mark.slow
def test_each_request_may_fail_once(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    for request in EVERY_REQUEST:
        proxy.fail(request, status(503, "<html>busy</html>"))
    step = step_publication(repo, folder(99, seed=99), 99)  # weights that are new to the Hub
    commit = publish(hub, step)
    assert not proxy.faults
    assert commits_with(api, step) == [commit]
    assert tags(api, repo) == {"step99": commit}


@pytest.mark.parametrize("fault", [lose_response, reset_connection])
@pytest.mark.parametrize("request_", ["POST .*/commit/", "POST .*/tag/"])
def test_a_broken_connection_makes_no_second_commit_or_tag(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy, request_: str, fault: Fault
) -> None:
    proxy.fail(request_, fault)
    step = step_publication(repo, folder(4), 4)
    commit = publish(hub, step)
    assert commits_with(api, step) == [commit]
    assert tags(api, repo) == {"step4": commit}
    # After a lost response the result is looked up, and the request is not sent again.
    assert proxy.count(request_) == (1 if fault is lose_response else 2)


def test_a_commit_without_response_is_retried(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    proxy.fail("POST .*/commit/", hang(proxy))
    step = step_publication(repo, folder(4), 4)
    commit = publish(replace(hub, deadline_s=1.5), step)
    assert commits_with(api, step) == [commit]


def test_a_hub_that_stays_down_is_an_error(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy, waits: list[float]
) -> None:
    proxy.fail("POST .*/commit/", status(500), times=99)
    with pytest.raises(HubUnreachable, match=r"HTTP 500.*committing 'Step 4'") as caught:
        publish(hub, step_publication(repo, folder(4), 4))
    assert caught.value.exit_code == 75
    assert tags(api, repo) == {}
    assert len(waits) == 12


def test_a_kill_between_commit_and_tag_is_repaired(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    step = step_publication(repo, folder(4), 4)
    words = [
        "import os, sys; from pathlib import Path",
        "from hubmerge.hub.client import Hub; from tests.hub.conftest import step_publication",
        "from hubmerge.hub.publish import publish",
        "hub = Hub(sys.argv[1], lambda: os.environ['TOKEN'], Path(sys.argv[2]), 'the test Hub')",
        "publish(hub, step_publication(sys.argv[3], Path(sys.argv[4]), 4))",
    ]
    command = [sys.executable, "-c", "\n".join(words), hub.endpoint, hub.cache, repo, step.folder]

    def kill(forward: Forward) -> Response:
        os.kill(process.pid, signal.SIGKILL)
        raise ConnectionDropped

    proxy.fail("POST .*/tag/", kill)
    environment = {**os.environ, "TOKEN": str(hub.token)}
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, env=environment)
    assert process.wait() == -signal.SIGKILL
    [commit] = commits_with(api, step)
    assert tags(api, repo) == {}

    assert publish(hub, step) == commit
    assert commits_with(api, step) == [commit]
    assert tags(api, repo) == {"step4": commit}


class Sender:
    """Fails as often as given, then sends."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise HubUnreachable(f"failure {self.calls}")
        return "commit"


def test_a_moving_head_does_not_use_up_the_retries(waits: list[float]) -> None:
    send, heads = Sender(failures=50), itertools.count()
    assert ensure_once(lambda: None, send, lambda: next(heads)) == "commit"
    assert send.calls == 51
    assert len(waits) == 50


def test_a_head_that_stays_the_same_ends_the_retries(waits: list[float]) -> None:
    send = Sender(failures=99)
    with pytest.raises(HubUnreachable, match="failure 13"):
        ensure_once(lambda: None, send, lambda: "head")
    assert len(waits) == 12


def test_the_attempts_are_limited_even_with_a_moving_head(waits: list[float]) -> None:
    send, heads = Sender(failures=999), itertools.count()
    with pytest.raises(HubUnreachable, match="failure 200"):
        ensure_once(lambda: None, send, lambda: next(heads))


def test_after_a_failure_the_result_is_found_and_not_sent_again(waits: list[float]) -> None:
    send, found = Sender(failures=1), iter([None, "found"])
    assert ensure_once(lambda: next(found), send, lambda: "head") == "found"
    assert send.calls == 1


@pytest.mark.slow
def test_sixteen_rivals_all_publish(hub: Hub, repo: str, folder: Folder, api: HfApi) -> None:
    steps = [step_publication(repo, folder(number), number) for number in range(1, 17)]
    with ThreadPoolExecutor(16) as pool:
        commits = list(pool.map(lambda step: publish(hub, step), steps))
    assert tags(api, repo) == {step.tag: sha for step, sha in zip(steps, commits, strict=True)}
    history = [item.commit_id for item in api.list_repo_commits(repo)]
    assert len(history) == 17  # the initial commit, and one for each step
    assert set(commits) == set(history[:-1])
    for number, step in enumerate(steps, start=1):
        data = api.hf_hub_download(repo, "hubmerge.json", revision=f"step{number}")
        assert Path(data).read_bytes() == (step.folder / "hubmerge.json").read_bytes()


def test_a_commit_with_other_bytes_gets_no_tag(
    hub: Hub, repo: str, folder: Folder, api: HfApi, proxy: Proxy
) -> None:
    before = api.list_repo_refs(repo).branches[0].target_commit
    body = {"commitOid": before, "commitUrl": f"{proxy.url}/{repo}/commit/{before}"}
    proxy.fail("POST .*/commit/", replace_body(json.dumps(body).encode()))
    with pytest.raises(IntegrityError):
        publish(hub, step_publication(repo, folder(4), 4))
    assert tags(api, repo) == {}


def test_an_invalid_card_is_refused_with_the_message_of_the_hub(
    hub: Hub, repo: str, folder: Folder
) -> None:
    broken = folder(4)
    (broken / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(HubError, match=r"Invalid metadata in README\.md") as caught:
        publish(hub, step_publication(repo, broken, 4))
    assert caught.value.exit_code == 1


def test_a_wait_of_an_hour_is_an_error(hub: Hub, repo: str, folder: Folder, proxy: Proxy) -> None:
    proxy.fail("POST .*/commit/", status(429, Retry_After="3600"))
    with pytest.raises(HubUnreachable) as caught:
        publish(hub, step_publication(repo, folder(4), 4))
    assert "It asks to wait 3600 s, until" in caught.value.hint


def test_an_empty_folder_is_refused(hub: Hub, repo: str, tmp_path: Path, api: HfApi) -> None:
    with pytest.raises(UsageError, match="nothing to publish"):
        publish(hub, step_publication(repo, tmp_path / "missing", 4))
    assert len(api.list_repo_commits(repo)) == 1


@pytest.mark.parametrize("name", ["a\\b.json", "line\nbreak.json", "-rf.json", "\u202egpj.json"])
def test_hostile_file_names_are_refused(
    hub: Hub, repo: str, folder: Folder, proxy: Proxy, name: str
) -> None:
    with pytest.raises(UsageError):
        publish(hub, step_publication(repo, folder(4, **{name: "x"}), 4))
    assert proxy.count("POST") == 0


def test_a_missing_repository_is_an_error(hub: Hub, folder: Folder) -> None:
    with pytest.raises(NotOnHub, match="has no such repository"):
        publish(hub, step_publication("hub-tests/nowhere", folder(4), 4))


def test_without_a_tag_only_the_newest_commit_counts(
    hub: Hub, repo: str, folder: Folder, api: HfApi
) -> None:
    card = replace(step_publication(repo, folder(4), 4), tag=None)
    other = replace(step_publication(repo, folder(8), 8), tag=None)
    for publication in (card, other, card):
        commit = publish(hub, publication)
        assert api.model_info(repo).sha == commit
