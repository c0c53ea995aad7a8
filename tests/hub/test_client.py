"""Asking a Hub: deadlines, retries where they are safe, and answers in plain words."""

from __future__ import annotations

import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from huggingface_hub import HfApi, close_session, get_session

from hubmerge.errors import HubError, HubUnreachable, NoAccess, NotOnHub, UsageError
from hubmerge.hub import client
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo
from hubmerge.hub.step_names import list_refs
from hubmerge.server import ServerState
from hubmerge.server.tokens import Tokens
from tests.hub.proxy import Fault, Proxy, cut_short, first, hang, lose_answer, reset, say, status

REAL_PAUSES_S = client._PAUSES_S


@pytest.mark.parametrize(
    "fault", [status(503), status(429), status(500, "<html>"), reset, lose_answer, cut_short]
)
def test_what_passes_is_asked_again(hub: Hub, repo: str, proxy: Proxy, fault: Fault) -> None:
    proxy.fail("GET .*/refs", fault, times=2)
    assert list_refs(hub, repo).branches.keys() == {"main"}
    assert proxy.count("GET .*/refs") == 3


def test_a_gateways_page_is_no_answer(hub: Hub, repo: str, proxy: Proxy) -> None:
    proxy.fail("GET .*/refs", say(b"<html>sign in to this network</html>"))
    assert list_refs(hub, repo).branches.keys() == {"main"}


def test_after_four_times_it_is_enough(hub: Hub, repo: str, proxy: Proxy) -> None:
    proxy.fail("GET .*/refs", status(503), times=9)
    with pytest.raises(HubUnreachable, match=f"HTTP 503.*reading the tags of {repo}") as caught:
        list_refs(hub, repo)
    assert proxy.count("GET .*/refs") == 4
    assert caught.value.exit_code == 75
    assert "run the same command again" in caught.value.hint


@pytest.mark.parametrize(
    "header", [{"Retry_After": "1"}, {"RateLimit": '"api";r=0;t=1'}], ids=["Retry-After", "limit"]
)
def test_the_hub_says_how_long_to_wait(
    hub: Hub, repo: str, proxy: Proxy, header: dict[str, str]
) -> None:
    proxy.fail("GET .*/refs", status(429, **header))
    start = time.monotonic()
    list_refs(hub, repo)
    assert 1.0 <= time.monotonic() - start < 5.0


def test_longer_than_the_deadline_is_not_waited(hub: Hub, repo: str, proxy: Proxy) -> None:
    proxy.fail("GET .*/refs", status(503, Retry_After="100"))
    with pytest.raises(HubUnreachable) as caught:
        list_refs(hub, repo)
    assert proxy.count("GET .*/refs") == 1
    assert "It asks to wait 100 s." in caught.value.hint


def test_a_black_hole_is_left_at_the_deadline(hub: Hub, repo: str, proxy: Proxy) -> None:
    proxy.fail("GET .*/refs", hang(proxy), times=9)
    start = time.monotonic()
    with pytest.raises(HubUnreachable, match="does not answer"):
        list_refs(replace(hub, deadline_s=0.8), repo)
    assert time.monotonic() - start < 5


def test_the_deadline_holds_where_the_client_repeats_by_itself(
    hub: Hub, repo: str, proxy: Proxy
) -> None:
    proxy.fail("GET .*/tree/", status(503), times=99)
    start = time.monotonic()
    with pytest.raises(HubUnreachable):
        replace(hub, deadline_s=0.8).ask_once("listing", lambda api: list(api.list_repo_tree(repo)))
    assert time.monotonic() - start < 5


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr(client, "_PAUSES_S", REAL_PAUSES_S)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = replace(hub, endpoint=f"http://127.0.0.1:{free.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(HubUnreachable, match="does not answer"):
            ensure_repo(nobody, "hub-tests/any")
    assert time.monotonic() - start < 6


def test_a_bug_is_no_answer_of_a_hub(hub: Hub) -> None:
    with pytest.raises(ZeroDivisionError):
        hub.ask("dividing", lambda api: 1 // 0)


def test_a_connection_pool_that_another_thread_closed(hub: Hub) -> None:
    sessions: list[object] = []

    def question(api: HfApi) -> int:
        session = get_session()
        if not sessions:
            close_session()
        sessions.append(session)
        return session.get(f"{api.endpoint}/api/hubmerge/status").status_code

    assert hub.ask("asking for the status", question) == 200


def test_a_thread_that_finds_nobody_leaves_the_others_their_answers(hub: Hub, proxy: Proxy) -> None:
    asked, told = threading.Event(), threading.Event()

    def slow() -> None:
        asked.set()
        told.wait()

    def question(api: HfApi) -> int:
        return get_session().get(f"{api.endpoint}/api/hubmerge/status").status_code

    proxy.fail("/api/hubmerge/status", first(slow))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(question, hub.api)
        asked.wait()
        close_session()  # what huggingface_hub does after a refused connection
        told.set()
        assert answer.result() == 200


def test_the_token_is_never_told(hub: Hub, repo: str, proxy: Proxy) -> None:
    token = str(hub.token)
    for code in (400, 401, 403, 413):
        proxy.fail("GET .*/auth-check/write", status(code, f"bad token {token}"))
        with pytest.raises(HubError) as caught:
            ensure_repo(hub, repo)
        error = caught.value
        assert "bad token hf_***" in error.message
        assert token not in f"{error!r} {error.message} {error.hint} {hub!r} {hub.api!r}"
        ours = traceback.format_exception(error.with_traceback(None), chain=False)
        assert token not in "".join(ours)


def test_making_what_exists_is_fine(hub: Hub, repo: str, api: HfApi) -> None:
    ensure_repo(hub, repo)
    ensure_repo(hub, f"{repo}-private", private=True)
    ensure_repo(hub, f"{repo}-private", private=True)
    ensure_repo(hub, f"{repo}-private")
    assert api.model_info(f"{repo}-private").private
    assert not api.model_info(repo).private


def test_private_is_not_promised_for_what_is_public(hub: Hub, repo: str) -> None:
    with pytest.raises(UsageError, match="is public"):
        ensure_repo(hub, repo, private=True)


def test_a_repository_is_made_once_though_the_answer_is_lost(
    hub: Hub, repo: str, proxy: Proxy, api: HfApi
) -> None:
    proxy.fail("POST .*/create", lose_answer)
    ensure_repo(hub, f"{repo}-new")
    assert api.repo_exists(f"{repo}-new")


@pytest.mark.parametrize("exists", [True, False])
def test_a_token_that_may_only_read(
    hub: Hub, repo: str, server: ServerState, exists: bool, api: HfApi
) -> None:
    reader = replace(hub, token=Tokens(server.data).mint("reader", "read"))
    asked = repo if exists else f"{repo}-new"
    with pytest.raises(NoAccess, match="does not allow it") as caught:
        ensure_repo(reader, asked)
    assert "hf auth login" in caught.value.hint
    assert str(reader.token) not in caught.value.message
    assert api.repo_exists(asked) == exists


def test_a_token_that_nobody_knows(hub: Hub, repo: str, proxy: Proxy) -> None:
    stranger = replace(hub, token="hf_" + "x" * 34)
    with pytest.raises(NoAccess, match="Invalid credentials") as caught:
        ensure_repo(stranger, repo)
    assert "xxx" not in caught.value.message
    assert len(proxy.seen) == 1  # no retry storm


def test_no_token_at_all(hub: Hub, repo: str, proxy: Proxy) -> None:
    with pytest.raises(NoAccess, match="no token") as caught:
        ensure_repo(replace(hub, token=None), repo)
    assert "hf auth login" in caught.value.hint
    assert not proxy.seen


def test_a_private_repository_is_hidden_from_strangers(hub: Hub, repo: str) -> None:
    ensure_repo(hub, f"{repo}-private", private=True)
    with pytest.raises(NotOnHub, match="no such repository") as caught:
        list_refs(replace(hub, token=None), f"{repo}-private")
    assert "if it is private: Run `hf auth login`" in caught.value.hint


def test_offline(monkeypatch: pytest.MonkeyPatch, hub: Hub, repo: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="OfflineModeIsEnabled"):
        list_refs(hub, repo)
