"""The server as a process: restarted, killed, stopped, and alone on its folder."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.server import ServerState, read_state
from hubmerge.server.state import ask_status

from .conftest import ROOT, kill, wait_for

Spawn = Callable[..., ServerState]


def api_of(state: ServerState) -> HfApi:
    return HfApi(endpoint=state.url, token=state.token)


def test_the_state_says_where_the_server_listens(spawn: Spawn) -> None:
    state = spawn("--no-seed")
    told = json.loads((state.data / "state.json").read_text())
    assert told == {
        "url": f"http://127.0.0.1:{state.port}",
        "pid": state.pid,
        "data": str(state.data),
        "leased": False,
    }
    assert ask_status(state.url) == {"data": str(state.data)}
    assert set(ask_status(state.url, full=True)) == {"data", "repos", "versions"}
    for secret in ("state.json", "tokens.json", "signing.key"):
        assert stat.S_IMODE((state.data / secret).stat().st_mode) == 0o600
    assert state.token.startswith("hf_")
    assert len(state.token) == 37
    assert stat.S_IMODE(state.data.stat().st_mode) == 0o700


def test_data_and_token_outlive_a_restart(spawn: Spawn, tmp_path: Path) -> None:
    first = spawn("--no-seed")
    api_of(first).create_repo("me/model")
    commit = api_of(first).upload_file(
        path_or_fileobj=b"w" * 100_000, path_in_repo="w.bin", repo_id="me/model"
    )
    kill(first.pid, signal.SIGTERM)
    assert read_state(first.data) is None
    assert not (first.data / "state.json").exists()
    second = spawn("--no-seed")
    assert second.token == first.token
    assert api_of(second).model_info("me/model").sha == commit.oid
    file = api_of(second).hf_hub_download("me/model", "w.bin", cache_dir=tmp_path / "cache")
    assert Path(file).read_bytes() == b"w" * 100_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "hubmerge.server", "--data", str(tmp_path), "--no-seed"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    wait_for(lambda: read_state(tmp_path))
    process.send_signal(number)
    assert process.communicate(timeout=10)[1] == b""
    assert process.returncode == 0
    assert not (tmp_path / "state.json").exists()


def test_a_second_server_is_refused(spawn: Spawn) -> None:
    state = spawn("--no-seed")
    command = [sys.executable, "-m", "hubmerge.server", "--data", str(state.data)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert second.returncode == 1
    assert "Another Hub already serves" in second.stderr
    assert state.url in second.stderr
    assert "Traceback" not in second.stderr
    assert read_state(state.data) == state


def test_a_taken_port_is_said(spawn: Spawn, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "hubmerge.server", "--data", str(tmp_path / "d")]
        second = subprocess.run(
            [*command, "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=20
        )
    assert second.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in second.stderr


def test_a_state_left_by_a_killed_server_is_not_believed(spawn: Spawn, tmp_path: Path) -> None:
    state = spawn("--no-seed")
    kill(state.pid)
    assert (state.data / "state.json").exists()
    assert read_state(state.data) is None
    # Another Hub may have got the port since; it serves another folder.
    other = tmp_path / "other"
    other.mkdir()
    again = spawn("--no-seed")
    (other / "state.json").write_text((again.data / "state.json").read_text())
    assert read_state(again.data) == again
    assert read_state(other) is None


def test_an_answer_does_not_wait_for_the_network(hub: ServerState, web: httpx2.Client) -> None:
    """Nagle's algorithm would hold each answer back by 40 ms."""
    times = []
    for _ in range(20):
        start = time.monotonic()
        web.get("/api/whoami-v2")
        times.append(time.monotonic() - start)
    assert sorted(times)[5] < 0.03


def test_a_kill_during_an_upload_leaves_no_half_file(spawn: Spawn) -> None:
    state = spawn("--no-seed")
    api = api_of(state)
    api.create_repo("me/model")
    head = api.model_info("me/model").sha
    body = os.urandom(8 << 20)
    oid = hashlib.sha256(body).hexdigest()
    href = upload_href(state, oid, len(body))
    with send_half(href, body):
        wait_for(lambda: sum(f.stat().st_size for f in (state.data / "tmp").iterdir()))
        kill(state.pid)
    assert [f for f in (state.data / "blobs").rglob("*") if f.is_file()] == []
    again = spawn("--no-seed", "--port", str(state.port))
    assert list((again.data / "tmp").iterdir()) == []
    assert api_of(again).model_info("me/model").sha == head
    # The address given before the kill still holds: a client's own retry goes through.
    assert put(href, body) == 200
    add = CommitOperationAdd("w.bin", body)
    commit = api_of(again).create_commit("me/model", [add], commit_message="m")
    assert api_of(again).model_info("me/model").sha == commit.oid


def upload_href(state: ServerState, oid: str, size: int) -> str:
    answer = httpx2.post(
        f"{state.url}/me/model.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": oid, "size": size}]},
        headers={"Authorization": f"Bearer {state.token}"},
    )
    return str(answer.json()["objects"][0]["actions"]["upload"]["href"])


def send_half(href: str, body: bytes) -> socket.socket:
    url = urlsplit(href)
    connection = socket.create_connection((str(url.hostname), int(url.port or 0)))
    head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
    connection.sendall(body[: len(body) // 2])
    return connection


def put(href: str, body: bytes) -> int:
    return httpx2.put(href, content=body).status_code
