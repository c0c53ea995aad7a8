"""Publishing and reading under the fault plans of `hubmerge hub serve --faults`."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest

from hubmerge.errors import HubError, HubmergeError, HubUnreachable, NoAccess
from hubmerge.hub.client import Hub
from hubmerge.hub.fetch import fetch
from hubmerge.hub.outbox import Outbox, Publisher
from hubmerge.hub.publish import Publication, publish
from hubmerge.hub.resolve import resolve
from hubmerge.hub.step_names import list_refs
from hubmerge.refs import parse_ref
from hubmerge.server.faults import Fault
from hubmerge.server.tokens import Tokens
from tests.faulty_hub import FaultyHub
from tests.hub.conftest import FAULTY_REPO as REPO
from tests.hub.conftest import commits_with, step_publication, tags, write_step_folder

ROOT = Path(__file__).parents[2]
ENDPOINTS = (
    "GET .*/revision/", "GET .*/commits/", "GET .*/tree/", "POST .*/preupload/",
    "POST .*/objects/batch", "PUT /lfs/", "POST .*/commit/", "POST .*/tag/",
)  # fmt: skip


@pytest.fixture
def hub(faulty: FaultyHub, tmp_path: Path) -> Hub:
    return faulty.hub(tmp_path / "cache")


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    """The waits of the client library and of hubmerge end at once."""
    clock = SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)


def make_step(tmp_path: Path, step: int, seed: int = 0) -> Publication:
    return step_publication(REPO, write_step_folder(tmp_path / f"{step}-{seed}", step, seed), step)


def start(hub: Hub, outbox: Outbox) -> Publisher:
    return Publisher(
        hub, outbox, lambda step: step_publication(REPO, outbox.step_folder(step), step)
    )


@pytest.mark.usefixtures("no_sleep")
def test_a_burst_at_any_endpoint_is_passed(faulty: FaultyHub, hub: Hub, tmp_path: Path) -> None:
    for number, (request, status) in enumerate(
        zip(ENDPOINTS, cycle((500, 502, 503, 504)), strict=False), start=1
    ):
        faulty.plan(Fault(request=request, fault="status", status=status, times=3))
        step = make_step(tmp_path, number, seed=7)
        commit = publish(hub, step)
        faulty.plan()
        assert commits_with(faulty.api, step) == [commit], request
        assert tags(faulty.api, REPO)[f"step{number}"] == commit, request
    assert len(faulty.api.list_repo_commits(REPO)) == 1 + len(ENDPOINTS)


@pytest.mark.slow
@pytest.mark.usefixtures("no_sleep")
def test_an_endpoint_that_stays_down_is_asked_so_often_and_the_step_waits(
    faulty: FaultyHub, hub: Hub, tmp_path: Path
) -> None:
    for number, request in enumerate(ENDPOINTS, start=20):
        step = make_step(tmp_path, number, seed=8)
        faulty.plan(Fault(request=request, fault="status", status=503, times=None))
        with pytest.raises(HubUnreachable) as caught:
            publish(hub, step)
        assert caught.value.exit_code == 75
        assert len(faulty.requests) < 200, request
        faulty.plan()
        assert f"step{number}" not in tags(faulty.api, REPO)
        commit = publish(hub, step)  # the same command later
        assert commits_with(faulty.api, step) == [commit], request


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_hub_that_answers_too_slowly_is_given_up(
    faulty: FaultyHub, hub: Hub, tmp_path: Path, fault: str
) -> None:
    publish(hub, make_step(tmp_path, 1))
    revision = resolve(hub, parse_ref(f"{REPO}@step1"))
    impatient = replace(hub, deadline_s=0.3)
    for request, work in (
        ("GET .*/refs", lambda: list_refs(impatient, REPO)),
        ("GET .*/resolve/.*/README.md", lambda: fetch(impatient, revision)),
    ):
        planned = {"request": request, "fault": fault, "delay": 0.1, "times": None}
        faulty.plan(Fault.model_validate(planned))
        with pytest.raises(HubUnreachable, match="TimeoutError"):
            work()


def test_a_commit_that_is_never_answered_does_not_hold_the_end_of_training(
    faulty: FaultyHub, hub: Hub, tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path / "run")
    write_step_folder(outbox.step_folder(1), 1)
    faulty.plan(Fault(request="POST .*/commit/", fault="hang", times=None))
    publisher = start(replace(hub, deadline_s=0.5), outbox)
    with pytest.raises(HubUnreachable, match="1 of 1 steps wait"):
        publisher.close(0.1)
    assert faulty.count("/commit/main") <= 2
    faulty.plan()
    assert start(hub, outbox).close(60.0).keys() == {1}


@pytest.mark.parametrize(("status", "message"), [
    (400, "Invalid metadata in README.md. 'license' must be one of ..."),
    (403, "Forbidden: a secret was found in notes.txt, line 3."),
    (403, "Private repository storage limit reached, please upgrade your plan."),
    (413, "Your push was rejected because it contains files larger than 10 MiB."),
])  # fmt: skip
def test_a_refused_commit_is_not_tried_again_and_the_steps_stay(
    faulty: FaultyHub, hub: Hub, tmp_path: Path, status: int, message: str
) -> None:
    outbox = Outbox(tmp_path / "run")
    for step in (1, 2):
        write_step_folder(outbox.step_folder(step), step)
    faulty.plan(
        Fault(request="POST .*/commit/", fault="status", status=status, message=message, times=None)
    )
    publisher = start(hub, outbox)
    with pytest.raises(HubError) as caught:
        publisher.close(60.0)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"2 of 2 steps wait in {outbox.steps_folder}: ")
    assert caught.value.exit_code == 1
    assert faulty.count("/commit/main") == 1
    assert outbox.saved_steps() == (1, 2)
    faulty.plan()
    assert start(hub, outbox).close(60.0).keys() == {1, 2}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_reader_is_told_what_to_do_and_asks_once(
    faulty: FaultyHub, hub: Hub, status: int
) -> None:
    message = f"{hub.token} may not"
    faulty.plan(Fault(request="GET", fault="status", status=status, message=message, times=None))
    with pytest.raises(NoAccess) as caught:
        resolve(hub, parse_ref(f"{REPO}@step1"))
    assert REPO in caught.value.message
    assert "hf_*** may not" in caught.value.message
    assert "hf auth login" in caught.value.hint
    assert len(faulty.requests) == 1


def test_a_gated_repository_names_the_remedy(faulty: FaultyHub, hub: Hub, tmp_path: Path) -> None:
    publish(hub, make_step(tmp_path, 1))
    faulty.api.update_repo_settings(REPO, gated="manual")
    Tokens(faulty.data).create("ann", "write")
    stranger = replace(hub, sign_in=lambda: Tokens(faulty.data).create("ann", "read"))
    faulty.plan()
    with pytest.raises(NoAccess, match="gated") as caught:
        fetch(stranger, resolve(stranger, parse_ref(f"{REPO}@step1")))
    assert "Ask for access" in caught.value.hint
    assert len(faulty.requests) <= 3


def test_weights_that_were_deleted_for_good_are_an_error(
    faulty: FaultyHub, hub: Hub, tmp_path: Path
) -> None:
    publish(hub, make_step(tmp_path, 1, seed=9))
    revision = resolve(hub, parse_ref(f"{REPO}@step1"))
    [file] = faulty.api.list_lfs_files(REPO)
    faulty.api.permanently_delete_lfs_files(REPO, [file], rewrite_history=False)
    with pytest.raises(HubError, match=f"downloading {REPO}@step1"):
        fetch(hub, revision)
    assert not list(hub.cache.glob("*/snapshots/*/model.safetensors"))


def test_a_disk_that_is_full_while_downloading_leaves_no_file(
    faulty: FaultyHub, hub: Hub, tmp_path: Path
) -> None:
    publish(hub, make_step(tmp_path, 1))
    revision = resolve(hub, parse_ref(f"{REPO}@step1"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # weights have 2048 bytes
    try:
        with pytest.raises((OSError, HubmergeError)) as caught:
            fetch(hub, revision)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "too large" in str(caught.value)
    assert (fetch(hub, revision) / "model.safetensors").stat().st_size == 2048


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Another host, and the headers of the requests that it got."""
    headers: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            headers.append({name.lower(): text for name, text in self.headers.items()})
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"<html>")

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", headers
    server.shutdown()
    server.server_close()


def test_a_redirect_to_another_host_gets_no_token(
    faulty: FaultyHub, hub: Hub, tmp_path: Path, elsewhere: tuple[str, list[dict[str, str]]]
) -> None:
    url, headers = elsewhere
    step = make_step(tmp_path, 1)
    publish(hub, step)
    revision = resolve(hub, parse_ref(f"{REPO}@step1"))
    for request, work in (
        ("GET .*/refs", lambda: list_refs(hub, REPO)),
        ("GET .*/resolve/", lambda: fetch(hub, revision)),
        ("POST .*/commit/", lambda: publish(replace(hub, deadline_s=2.0), make_step(tmp_path, 2))),
    ):
        headers.clear()
        faulty.plan(Fault(request=request, fault="redirect", to=url, times=None))
        with pytest.raises(HubError):
            work()
        assert headers, request
        assert all("authorization" not in got for got in headers), request
        assert all(str(hub.token) not in str(got) for got in headers), request
    faulty.plan()
    assert list(tags(faulty.api, REPO)) == ["step1"]


@pytest.mark.slow
def test_two_processes_publish_to_one_repository(
    faulty: FaultyHub, hub: Hub, tmp_path: Path
) -> None:
    words = (
        "import sys; from pathlib import Path\n"
        "from hubmerge.hub.client import Hub; from hubmerge.hub.publish import publish\n"
        "from tests.hub.conftest import step_publication\n"
        "url, token, repo, folder, *steps = sys.argv[1:]\n"
        "hub = Hub(url, lambda: token, Path(folder) / 'cache', 'the test Hub')\n"
        "for step in map(int, steps):\n"
        "    publish(hub, step_publication(repo, Path(folder) / str(step), step))\n"
    )
    for step in range(1, 9):
        write_step_folder(tmp_path / str(step), step)
    shares = (("1", "2", "3", "4", "8"), ("5", "6", "7", "8", "4"))  # 4 and 8 are of both
    faulty.plan(Fault(request="POST .*/commit/", fault="lose", after=2, times=2))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", words, hub.endpoint, str(hub.token), REPO, tmp_path, *steps],
            cwd=ROOT,
        )
        for steps in shares
    ]
    assert [process.wait() for process in processes] == [0, 0]
    tagged = tags(faulty.api, REPO)
    assert tagged.keys() == {f"step{step}" for step in range(1, 9)}
    for step in range(1, 9):
        published = faulty.api.hf_hub_download(
            REPO, "hubmerge.json", revision=tagged[f"step{step}"], cache_dir=tmp_path / "read"
        )
        expected = (tmp_path / str(step) / "hubmerge.json").read_bytes()
        assert Path(published).read_bytes() == expected
