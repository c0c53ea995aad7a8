"""Leases: a Hub for as long as somebody needs it, and one for all who do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hubmerge.errors import HubUnreachable
from hubmerge.server import ServerState, lease, read_state
from hubmerge.server.leases import standing

from .conftest import ROOT, is_alive, kill, wait_for

CLIENT = """
import sys
from pathlib import Path
from hubmerge.server import lease
with lease(Path(sys.argv[1])) as state:
    print(state.pid, flush=True)
    sys.stdin.read()
"""


class Client:
    """Another process that leases the Hub until it is told to let go."""

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

    def let_go(self) -> None:
        self.process.communicate(timeout=20)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Callable[[], Client]]:
    started: list[Client] = []

    def start() -> Client:
        started.append(Client(tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.let_go()


def test_a_lease_starts_a_server_that_ends_with_it(tmp_path: Path) -> None:
    start = time.monotonic()
    with lease(tmp_path) as state:
        assert time.monotonic() - start < 5
        assert read_state(tmp_path) == state
        assert is_alive(state.pid)
    wait_for(lambda: not is_alive(state.pid), limit_s=6)
    assert not (tmp_path / "state.json").exists()


def test_a_server_that_nobody_leases_is_about_to_go(tmp_path: Path) -> None:
    with lease(tmp_path) as server:
        assert standing(tmp_path) == server
    assert read_state(tmp_path) == server  # it still runs
    assert standing(tmp_path) is None


def test_two_share_one_server_until_the_last_is_gone(
    tmp_path: Path, client: Callable[[], Client]
) -> None:
    first, second = client(), client()
    pid = first.server_pid()
    assert second.server_pid() == pid
    first.let_go()
    # Longer than the server's grace and several of its looks at the lease.
    time.sleep(3.5)
    assert is_alive(pid)
    second.let_go()
    wait_for(lambda: not is_alive(pid), limit_s=6)


def test_four_at_once_start_one_server(tmp_path: Path, client: Callable[[], Client]) -> None:
    clients = [client() for _ in range(4)]
    (pid,) = {one.server_pid() for one in clients}
    for one in clients:
        one.let_go()
    wait_for(lambda: not is_alive(pid), limit_s=6)
    assert "Another Hub" not in (tmp_path / "server.log").read_text()


def test_a_killed_client_does_not_keep_the_server(
    tmp_path: Path, client: Callable[[], Client]
) -> None:
    one = client()
    pid = one.server_pid()
    one.process.kill()
    wait_for(lambda: not is_alive(pid), limit_s=6)
    assert not (tmp_path / "state.json").exists()


def test_a_client_that_comes_while_the_server_goes_gets_a_new_one(tmp_path: Path) -> None:
    with lease(tmp_path) as first:
        pass
    wait_for(lambda: not (tmp_path / "state.json").exists(), limit_s=6)
    with lease(tmp_path) as second:
        assert read_state(tmp_path) == second != first
        assert second.token == first.token


def test_a_server_of_the_user_waits_for_a_leased_one_to_go(
    tmp_path: Path, spawn: Callable[..., ServerState]
) -> None:
    with lease(tmp_path / "data") as leased:
        pass
    state = spawn("--no-seed")
    assert leased.leased
    assert not state.leased
    assert state.token == leased.token


def test_a_stopped_server_leaves_no_lease_behind(tmp_path: Path) -> None:
    with lease(tmp_path) as first:
        kill(first.pid, signal.SIGKILL)
        with lease(tmp_path) as second:
            assert second.pid != first.pid
            assert read_state(tmp_path) == second


def test_a_server_of_the_user_is_shared_and_stays(spawn: Callable[..., ServerState]) -> None:
    state = spawn("--no-seed")
    with lease(state.data) as leased:
        assert leased == state
    time.sleep(3)
    assert read_state(state.data) == state


def test_a_server_that_cannot_start_is_said_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text("{broken")
    with pytest.raises(HubUnreachable, match="did not start") as failed, lease(tmp_path):
        pass
    assert "JSONDecodeError" in failed.value.hint
    assert "server.log" in failed.value.hint
