"""Calls to a Hub: deadlines, retries where they are safe, and clear errors."""

from __future__ import annotations

import socket
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from huggingface_hub import HfApi, close_session, get_session

from hubmerge.errors import HubError, HubUnreachable, NoAccess, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo
from hubmerge.hub.step_names import list_refs
from hubmerge.server import ServerState
from hubmerge.server.tokens import Tokens
from tests.hub.proxy import (
    Fault,
    Proxy,
    cut_short,
    hang,
    lose_response,
    replace_body,
    reset_connection,
    run_first,
    status,
)


@pytest.mark.parametrize(
    "fault",
    [status(503), status(429), status(500, "<html>"), reset_connection, lose_response, cut_short],
)
def test_transient_failures_are_retried(hub: Hub, repo: str, proxy: Proxy, fault: Fault) -> None:
    proxy.fail("GET .*/refs", fault, times=2)
    assert list_refs(hub, repo).branches.keys() == {"main"}
    assert proxy.count("GET .*/refs") == 3


def test_the_page_of_a_gateway_is_retried(hub: Hub, repo: str, proxy: Proxy) -> None:
    proxy.fail("GET .*/refs", replace_body(b"<html>sign in to this network</html>"))
    assert list_refs(hub, repo).branches.keys() == {"main"}


def test_a_call_fails_after_four_attempts(hub: Hub, repo: str, proxy: Proxy) -> None:
    proxy.fail("GET .*/refs", status(503), times=9)
    with pytest.raises(HubUnreachable, match=f"HTTP 503.*reading the tags of {repo}") as caught:
        list_refs(hub, repo)
    assert proxy.count("GET .*/refs") == 4
    assert caught.value.exit_code == 75
    assert "run the same command again" in caught.value.hint


@pytest.mark.parametrize(
    "header", [{"Retry_After": "7"}, {"RateLimit": '"api";r=0;t=7'}], ids=["Retry-After", "limit"]
)
def test_a_retry_waits_as_long_as_the_hub_asks(
    hub: Hub, repo: str, proxy: Proxy, header: dict[str, str], waits: list[float]
) -> None:
    proxy.fail("GET .*/refs", status(429, **header))
    list_refs(hub, repo)
    assert waits == [7.0]
    assert proxy.count("GET .*/refs") == 2


def test_a_wait_beyond_the_deadline_is_an_error(hub: Hub, repo: str, proxy: Proxy) -> None:
    proxy.fail("GET .*/refs", status(503, Retry_After="100"))
    with pytest.raises(HubUnreachable) as caught:
        list_refs(hub, repo)
    assert proxy.count("GET .*/refs") == 1
    assert "It asks to wait 100 s, until" in caught.value.hint


def test_a_call_without_response_ends_at_the_deadline(hub: Hub, repo: str, proxy: Proxy) -> None:
    proxy.fail("GET .*/refs", hang(proxy), times=9)
    with pytest.raises(HubUnreachable, match=r"does not answer \(TimeoutError\)"):
        list_refs(replace(hub, deadline_s=0.3), repo)
    assert proxy.count("GET .*/refs") <= 1  # the deadline is for all attempts together


def test_the_deadline_holds_where_the_client_retries_by_itself(
    hub: Hub, repo: str, proxy: Proxy
) -> None:
    proxy.fail("GET .*/tree/", status(503), times=99)
    # Not the 503 that the client raises after its own retries.
    with pytest.raises(HubUnreachable, match=r"does not answer \(TimeoutError\)"):
        replace(hub, deadline_s=0.3).call_once(
            "listing", lambda api: list(api.list_repo_tree(repo))
        )


def test_a_refused_connection_is_retried_three_times(hub: Hub, waits: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = replace(hub, endpoint=f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(HubUnreachable, match="does not answer"):
            ensure_repo(closed, "hub-tests/any")
    assert len(waits) == 3


def test_a_bug_is_not_turned_into_an_error_of_the_hub(hub: Hub) -> None:
    with pytest.raises(ZeroDivisionError):
        hub.call("dividing", lambda api: 1 // 0)


def test_a_closed_connection_pool_is_retried(hub: Hub) -> None:
    sessions: list[object] = []

    def get_status(api: HfApi) -> int:
        session = get_session()
        if not sessions:
            close_session()
        sessions.append(session)
        return session.get(f"{api.endpoint}/api/hubmerge/status").status_code

    assert hub.call("reading the status", get_status) == 200


def test_closing_the_session_does_not_cut_off_other_threads(hub: Hub, proxy: Proxy) -> None:
    requested, closed = threading.Event(), threading.Event()

    def wait_for_close() -> None:
        requested.set()
        closed.wait()

    def get_status(api: HfApi) -> int:
        return get_session().get(f"{api.endpoint}/api/hubmerge/status").status_code

    proxy.fail("/api/hubmerge/status", run_first(wait_for_close))
    with ThreadPoolExecutor() as pool:
        status_code = pool.submit(get_status, hub.api)
        requested.wait()
        close_session()  # what huggingface_hub does after a refused connection
        closed.set()
        assert status_code.result() == 200


def test_errors_never_contain_the_token(hub: Hub, repo: str, proxy: Proxy) -> None:
    token = str(hub.token)
    for code in (400, 401, 403, 413):
        proxy.fail("GET .*/auth-check/write", status(code, f"bad token {token}"))
        with pytest.raises(HubError) as caught:
            ensure_repo(hub, repo)
        error = caught.value
        assert "bad token hf_***" in error.message
        assert token not in f"{error!r} {error.message} {error.hint} {hub!r} {hub.api!r}"
        lines = traceback.format_exception(error.with_traceback(None), chain=False)
        assert token not in "".join(lines)


def test_ensure_repo_accepts_an_existing_repository(hub: Hub, repo: str, api: HfApi) -> None:
    ensure_repo(hub, repo)
    ensure_repo(hub, f"{repo}-private", private=True)
    ensure_repo(hub, f"{repo}-private", private=True)
    ensure_repo(hub, f"{repo}-private")
    assert api.model_info(f"{repo}-private").private
    assert not api.model_info(repo).private


def test_a_public_repository_is_not_accepted_as_private(hub: Hub, repo: str) -> None:
    with pytest.raises(UsageError, match="is public"):
        ensure_repo(hub, repo, private=True)


def test_a_lost_response_creates_the_repository_once(
    hub: Hub, repo: str, proxy: Proxy, api: HfApi
) -> None:
    proxy.fail("POST .*/create", lose_response)
    ensure_repo(hub, f"{repo}-new")
    assert api.repo_exists(f"{repo}-new")


@pytest.mark.parametrize("exists", [True, False])
def test_a_read_only_token_is_refused(
    hub: Hub, repo: str, server: ServerState, exists: bool, api: HfApi
) -> None:
    reader = replace(hub, sign_in=lambda: Tokens(server.data).create("reader", "read"))
    repo_id = repo if exists else f"{repo}-new"
    with pytest.raises(NoAccess, match="does not allow it") as caught:
        ensure_repo(reader, repo_id)
    assert "hf auth login" in caught.value.hint
    assert str(reader.token) not in caught.value.message
    assert api.repo_exists(repo_id) == exists


def test_an_unknown_token_is_refused_at_once(hub: Hub, repo: str, proxy: Proxy) -> None:
    stranger = replace(hub, sign_in=lambda: "hf_" + "x" * 34)
    with pytest.raises(NoAccess, match="Invalid credentials") as caught:
        ensure_repo(stranger, repo)
    assert "xxx" not in caught.value.message
    assert len(proxy.requests) == 1  # without retries


def test_a_missing_token_is_refused_without_a_request(hub: Hub, repo: str, proxy: Proxy) -> None:
    with pytest.raises(NoAccess, match="no token") as caught:
        ensure_repo(replace(hub, sign_in=lambda: None), repo)
    assert "hf auth login" in caught.value.hint
    assert not proxy.requests


def test_a_private_repository_is_hidden_from_strangers(hub: Hub, repo: str) -> None:
    ensure_repo(hub, f"{repo}-private", private=True)
    with pytest.raises(NotOnHub, match="no such repository") as caught:
        list_refs(replace(hub, sign_in=lambda: None), f"{repo}-private")
    assert "if it is private: Run `hf auth login`" in caught.value.hint
