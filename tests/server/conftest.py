"""One Hub process for all tests, and clients for it; each test has its own repositories."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest
from huggingface_hub import HfApi, constants

from hubmerge.server import ServerState, lease, read_state
from hubmerge.server.tokens import Tokens

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def no_xet() -> None:
    constants.HF_HUB_DISABLE_XET = True


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    with lease(tmp_path_factory.mktemp("hub")) as state:
        yield state


@pytest.fixture(scope="session")
def api(hub: ServerState) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture(scope="session")
def reader(hub: ServerState) -> HfApi:
    return HfApi(endpoint=hub.url, token=Tokens(hub.data).create("reader", "read"))


@pytest.fixture(scope="session")
def anonymous(hub: ServerState) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture(scope="session")
def web(hub: ServerState) -> Iterator[httpx2.Client]:
    """Plain HTTP with the write token."""
    headers = {"Authorization": f"Bearer {hub.token}"}
    with httpx2.Client(base_url=hub.url, headers=headers, timeout=None) as client:
        yield client


@pytest.fixture
def repo(api: HfApi) -> str:
    """The id of a new model repository."""
    repo_id = f"tests/repo-{next(_numbers)}"
    api.create_repo(repo_id)
    return repo_id


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., ServerState]]:
    """Start a separate server on tmp_path/data, as a user would."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> ServerState:
        data = tmp_path / "data"
        command = [sys.executable, "-m", "hubmerge.server", "--data", str(data), *options]
        process = subprocess.Popen(command, cwd=ROOT)
        started.append(process)
        return wait_until(lambda: state_of_process(process, data))

    yield start
    for process in started:
        process.kill()
        process.wait()


def state_of_process(process: subprocess.Popen[bytes], data: Path) -> ServerState | None:
    assert process.poll() is None, "the server ended before it listened"
    state = read_state(data)
    return state if state and state.pid == process.pid else None


def wait_until(probe: Callable[[], T | None], polls: int = 3000) -> T:
    """Poll until the probe returns a true value."""
    for _ in range(polls):
        if value := probe():
            return value
        time.sleep(0.02)
    raise AssertionError(f"nothing after {polls} polls")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def send_signal_and_wait(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal and wait until the process has ended."""
    os.kill(pid, number)
    wait_until(lambda: not is_alive(pid))
