"""The server as a process: restarts, kills, signals, and only one for a folder."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.server import ServerState, process, read_state
from hubmerge.server.state import fetch_status

from .conftest import ROOT, send_signal_and_wait, wait_until

Spawn = Callable[..., ServerState]


def api_of(state: ServerState) -> HfApi:
    return HfApi(endpoint=state.url, token=state.token)


def test_the_state_file_has_the_url_of_the_server(spawn: Spawn) -> None:
    state = spawn("--no-seed")
    fields = json.loads((state.data / "state.json").read_text())
    assert fields == {
        "url": f"http://127.0.0.1:{state.port}",
        "pid": state.pid,
        "data": str(state.data),
        "leased": False,
    }
    assert fetch_status(state.url) == {"data": str(state.data)}
    assert set(fetch_status(state.url, full=True)) == {"data", "repos", "versions"}
    for secret in ("state.json", "tokens.json", "signing.key"):
        assert stat.S_IMODE((state.data / secret).stat().st_mode) == 0o600
    assert state.token.startswith("hf_")
    assert len(state.token) == 37
    assert stat.S_IMODE(state.data.stat().st_mode) == 0o700


def test_data_and_token_survive_a_restart(spawn: Spawn, tmp_path: Path) -> None:
    first = spawn("--no-seed")
    api_of(first).create_repo("me/model")
    commit = api_of(first).upload_file(
        path_or_fileobj=b"w" * 100_000, path_in_repo="w.bin", repo_id="me/model"
    )
    send_signal_and_wait(first.pid, signal.SIGTERM)
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
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    wait_until(lambda: read_state(tmp_path))
    server.send_signal(number)
    assert server.communicate()[1] == b""
    assert server.returncode == 0
    assert not (tmp_path / "state.json").exists()


def test_a_second_server_is_refused(spawn: Spawn) -> None:
    state = spawn("--no-seed")
    command = [sys.executable, "-m", "hubmerge.server", "--data", str(state.data)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 1
    assert "Another Hub already serves" in second.stderr
    assert state.url in second.stderr
    assert "Traceback" not in second.stderr
    assert read_state(state.data) == state


def test_a_port_in_use_is_an_error(spawn: Spawn, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "hubmerge.server", "--data", str(tmp_path / "d")]
        second = subprocess.run(
            [*command, "--port", port], cwd=ROOT, capture_output=True, text=True
        )
    assert second.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in second.stderr


def test_the_state_file_of_a_killed_server_is_ignored(spawn: Spawn, tmp_path: Path) -> None:
    state = spawn("--no-seed")
    send_signal_and_wait(state.pid)
    assert (state.data / "state.json").exists()
    assert read_state(state.data) is None
    # Another Hub may use the port now; it serves another folder.
    other = tmp_path / "other"
    other.mkdir()
    again = spawn("--no-seed")
    (other / "state.json").write_text((again.data / "state.json").read_text())
    assert read_state(again.data) == again
    assert read_state(other) is None


def test_connections_do_not_use_nagles_algorithm() -> None:
    """It would delay each response by 40 ms."""
    with process._listen(0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_kill_during_an_upload_leaves_no_partial_file(spawn: Spawn) -> None:
    state = spawn("--no-seed")
    api = api_of(state)
    api.create_repo("me/model")
    head = api.model_info("me/model").sha
    body = os.urandom(8 << 20)
    oid = hashlib.sha256(body).hexdigest()
    href = upload_href(state, oid, len(body))
    with send_half(href, body):
        wait_until(lambda: sum(f.stat().st_size for f in (state.data / "tmp").iterdir()))
        send_signal_and_wait(state.pid)
    assert [f for f in (state.data / "blobs").rglob("*") if f.is_file()] == []
    again = spawn("--no-seed", "--port", str(state.port))
    assert list((again.data / "tmp").iterdir()) == []
    assert api_of(again).model_info("me/model").sha == head
    # The upload URL from before the kill is still valid, so a retry of the client succeeds.
    assert put(href, body) == 200
    add = CommitOperationAdd("w.bin", body)
    commit = api_of(again).create_commit("me/model", [add], commit_message="m")
    assert api_of(again).model_info("me/model").sha == commit.oid


def upload_href(state: ServerState, oid: str, size: int) -> str:
    response = httpx2.post(
        f"{state.url}/me/model.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": oid, "size": size}]},
        headers={"Authorization": f"Bearer {state.token}"},
        timeout=None,
    )
    return str(response.json()["objects"][0]["actions"]["upload"]["href"])


def send_half(href: str, body: bytes) -> socket.socket:
    url = urlsplit(href)
    connection = socket.create_connection((str(url.hostname), int(url.port or 0)))
    head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
    connection.sendall(body[: len(body) // 2])
    return connection


def put(href: str, body: bytes) -> int:
    return httpx2.put(href, content=body, timeout=None).status_code
