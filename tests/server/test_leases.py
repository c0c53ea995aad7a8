"""Leases: one server for all clients, as long as there is one."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hubmerge.durable import try_lock
from hubmerge.errors import HubUnreachable
from hubmerge.server import ServerState, lease, leases, process, read_state
from hubmerge.server.leases import server_in_use

from .conftest import ROOT, is_alive, send_signal_and_wait, wait_until

CLIENT = """
import sys
from pathlib import Path
from hubmerge.server import lease
with lease(Path(sys.argv[1])) as state:
    print(state.pid, flush=True)
    sys.stdin.read()
"""


class LeaseHolder:
    """Another process that leases the Hub until it is released."""

    def __init__(self, data: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(data)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def server_pid(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def release(self) -> None:
        self.process.communicate()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[[], LeaseHolder]]:
    started: list[LeaseHolder] = []

    def start() -> LeaseHolder:
        started.append(LeaseHolder(tmp_path))
        return started[-1]

    yield start
    for holder in started:
        holder.process.kill()
        holder.release()


def test_a_lease_starts_a_server_that_ends_with_it_and_the_next_client_gets_a_new_one(
    tmp_path: Path,
) -> None:
    with lease(tmp_path) as first:
        assert read_state(tmp_path) == first
        assert is_alive(first.pid)
    wait_until(lambda: not (tmp_path / "state.json").exists())
    with lease(tmp_path) as second:  # while the old server ends
        assert read_state(tmp_path) == second != first
        assert second.token == first.token
    wait_until(lambda: not is_alive(first.pid))


def test_a_server_that_nobody_leases_is_not_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerState("http://127.0.0.1:1", 1, tmp_path, leased=True)
    monkeypatch.setattr(leases, "read_state", lambda data: server)
    with (tmp_path / "lease").open("ab") as client:
        assert try_lock(client, shared=True)
        assert server_in_use(tmp_path) == server
    assert server_in_use(tmp_path) is None


def test_a_server_that_ends_is_not_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the lease itself, and still answers until its last request is done."""
    server = ServerState("http://127.0.0.1:1", 1, tmp_path, leased=True)
    answers = iter([server, server, None])
    monkeypatch.setattr(leases, "read_state", lambda data: next(answers))
    with (tmp_path / "lease").open("ab") as held_by_server:
        assert try_lock(held_by_server)
        assert server_in_use(tmp_path) is None


def test_two_clients_share_one_server_until_the_last_was_killed(
    tmp_path: Path, client: Callable[[], LeaseHolder]
) -> None:
    first, second = client(), client()
    pid = first.server_pid()
    assert second.server_pid() == pid
    first.release()
    assert is_alive(pid)
    second.process.kill()
    wait_until(lambda: not is_alive(pid))
    assert not (tmp_path / "state.json").exists()


def test_a_server_stops_only_when_nobody_holds_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SimpleNamespace(should_exit=False)
    looks: list[bool] = []
    with (tmp_path / "lease").open("ab") as watched, (tmp_path / "lease").open("ab") as client:
        assert try_lock(client, shared=True)

        async def sleep(seconds: float) -> None:
            looks.append(server.should_exit)
            if len(looks) == 5:
                client.close()

        monkeypatch.setattr(asyncio, "sleep", sleep)
        asyncio.run(process._stop_when_unleased(cast(Any, server), watched))
    assert looks == [False] * 5
    assert server.should_exit


def test_a_server_without_a_lease_does_not_stop_by_itself() -> None:
    server = SimpleNamespace(should_exit=False)
    asyncio.run(process._stop_when_unleased(cast(Any, server), None))
    assert not server.should_exit


def test_four_clients_at_once_start_one_server(
    tmp_path: Path, client: Callable[[], LeaseHolder]
) -> None:
    clients = [client() for _ in range(4)]
    (pid,) = {holder.server_pid() for holder in clients}
    for holder in clients:
        holder.release()
    wait_until(lambda: not is_alive(pid))
    assert "Another Hub" not in (tmp_path / "server.log").read_text()


def test_a_server_of_the_user_waits_for_a_leased_one_to_end(
    tmp_path: Path, spawn: Callable[..., ServerState]
) -> None:
    with lease(tmp_path / "data") as leased:
        pass
    state = spawn("--no-seed")
    assert leased.leased
    assert not state.leased
    assert state.token == leased.token


def test_a_killed_server_is_replaced(tmp_path: Path) -> None:
    with lease(tmp_path) as first:
        send_signal_and_wait(first.pid, signal.SIGKILL)
        with lease(tmp_path) as second:
            assert second.pid != first.pid
            assert read_state(tmp_path) == second


def test_a_server_of_the_user_is_shared(spawn: Callable[..., ServerState]) -> None:
    state = spawn("--no-seed")
    with lease(state.data) as leased:
        assert leased == state
    assert read_state(state.data) == state


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{broken")
    with pytest.raises(HubUnreachable, match="did not start") as failed, lease(tmp_path):
        pass
    assert "JSONDecodeError" in failed.value.hint
    assert "server.log" in failed.value.hint
