"""The outbox: in order, in the background, through outages; what waits is named."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from huggingface_hub import HfApi

from hubmerge.errors import HubmergeError, HubUnreachable, IntegrityError, NoAccess
from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Outbox, Publisher
from hubmerge.hub.publish import Publication, publish
from hubmerge.server import ServerState, read_state
from hubmerge.server.tokens import Tokens
from tests.hub.conftest import step_folder, step_of_run, tags
from tests.hub.proxy import Proxy, first, status

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "run")


def describing(outbox: Outbox, repo: str) -> Callable[[int], Publication]:
    return lambda step: step_of_run(repo, outbox.step_folder(step), step)


def save(outbox: Outbox, *steps: int) -> None:
    for step in steps:
        step_folder(outbox.step_folder(step), step)


def titles(api: HfApi, repo: str) -> list[str]:
    """The titles of the commits, oldest first, without the repository's own."""
    return [one.title for one in reversed(api.list_repo_commits(repo))][1:]


def test_saved_are_whole_folders_only(outbox: Outbox) -> None:
    assert outbox.saved() == ()
    for name in ("step16", "step2", ".step4.partial", "step8.partial", "checkpoint-8", "notes"):
        (outbox.steps / name).mkdir(parents=True)
    assert outbox.saved() == (2, 16)


def test_steps_are_published_in_order_while_more_are_saved(
    hub: Hub, repo: str, outbox: Outbox, api: HfApi
) -> None:
    save(outbox, 2, 1)
    publisher = Publisher(hub, outbox, describing(outbox, repo))
    for step in (4, 8):
        save(outbox, step)
        publisher.notify()
    assert publisher.close(5.0) == tags_by_step(api, repo)
    assert titles(api, repo) == ["Step 1", "Step 2", "Step 4", "Step 8"]
    assert publisher.waiting == ()


def test_a_later_run_sends_what_waits(
    hub: Hub, repo: str, outbox: Outbox, api: HfApi, proxy: Proxy
) -> None:
    save(outbox, 1, 2, 4)
    proxy.fail("POST .*/tag/", first(lambda: proxy.fail(".", status(503), times=10_000)))
    publisher = Publisher(hub, outbox, describing(outbox, repo))
    publisher.notify()
    with pytest.raises(HubUnreachable) as caught:
        publisher.close(0.5)
    assert caught.value.exit_code == 75
    assert f"2 of 3 steps wait in {outbox.steps}: " in caught.value.message
    assert publisher.waiting == (2, 4)

    proxy.faults.clear()
    assert Publisher(hub, outbox, describing(outbox, repo)).close(5.0) == tags_by_step(api, repo)
    assert titles(api, repo) == ["Step 1", "Step 2", "Step 4"]


def test_waits_as_the_hub_says(hub: Hub, repo: str, outbox: Outbox, proxy: Proxy) -> None:
    """Longer than one question may take: it is the outbox that has the time."""
    save(outbox, 1)
    proxy.fail("GET .*/refs", status(429, Retry_After="2"))
    start = time.monotonic()
    publisher = Publisher(replace(hub, deadline_s=1.9), outbox, describing(outbox, repo))
    wait_for(lambda: not publisher.waiting)
    assert time.monotonic() - start > 2.0
    assert publisher.close(5.0).keys() == {1}


def test_no_outage_stops_training_and_no_refusal_either(
    hub: Hub, repo: str, outbox: Outbox, server: ServerState
) -> None:
    tokens = Tokens(server.data)
    kept = tokens.file.read_text()
    revoked = tokens.mint("revoked", "write")
    tokens.file.write_text(kept)
    save(outbox, 1)
    publisher = Publisher(replace(hub, token=revoked), outbox, describing(outbox, repo))
    time.sleep(0.3)
    save(outbox, 2)
    publisher.notify()
    with pytest.raises(NoAccess, match=r"2 of 2 steps wait in .*: the test Hub does not") as caught:
        publisher.close(60.0)
    assert "hf auth login" in caught.value.hint
    assert revoked not in caught.value.message


def test_other_bytes_under_the_tag(hub: Hub, repo: str, outbox: Outbox, tmp_path: Path) -> None:
    publish(hub, step_of_run(repo, step_folder(tmp_path / "other", 1, seed=1), 1))
    save(outbox, 1)
    with pytest.raises(IntegrityError, match="stands for other bytes"):
        Publisher(hub, outbox, describing(outbox, repo)).close(60.0)


def test_a_bug_does_not_end_the_thread_unseen(hub: Hub, outbox: Outbox) -> None:
    def broken(step: int) -> Publication:
        raise KeyError(step)

    save(outbox, 1)
    with pytest.raises(HubmergeError, match="KeyError"):
        Publisher(hub, outbox, broken).close(60.0)


def test_the_hub_is_away_for_a_while(tmp_path: Path, outbox: Outbox) -> None:
    with Away(tmp_path / "data") as away:
        state = away.start()
        api = HfApi(endpoint=state.url, token=state.token)
        api.create_repo("hub-tests/away")
        hub = Hub(state.url, state.token, tmp_path / "cache", "the test Hub")
        save(outbox, 1)
        publisher = Publisher(hub, outbox, describing(outbox, "hub-tests/away"))
        wait_for(lambda: not publisher.waiting)

        away.stop()
        for step in (2, 4, 8):
            save(outbox, step)
            publisher.notify()
            time.sleep(0.2)
        assert publisher.waiting == (2, 4, 8)
        away.start_later(0.5, state.port)

        assert publisher.close(20.0) == tags_by_step(api, "hub-tests/away")
        assert titles(api, "hub-tests/away") == ["Step 1", "Step 2", "Step 4", "Step 8"]


class Away:
    """A Hub of its own on one data folder, which can be stopped and started again."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.processes: list[subprocess.Popen[bytes]] = []
        self.timers: list[threading.Timer] = []

    def __enter__(self) -> Away:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, port: int = 0) -> ServerState:
        words = ["-m", "hubmerge.server", "--data", self.data, "--port", port, "--no-seed"]
        command = [sys.executable, *map(str, words)]
        self.processes.append(subprocess.Popen(command, cwd=ROOT))
        return wait_for(lambda: read_state(self.data))

    def start_later(self, seconds: float, port: int) -> None:
        self.timers.append(threading.Timer(seconds, self.start, [port]))
        self.timers[-1].start()

    def stop(self) -> None:
        for timer in self.timers:
            timer.join()
        for process in self.processes:
            process.kill()
            process.wait()


def tags_by_step(api: HfApi, repo: str) -> dict[int, str]:
    return {int(name.removeprefix("step")): sha for name, sha in tags(api, repo).items()}


def wait_for(probe: Callable[[], T | None], limit_s: float = 15.0) -> T:
    """Ask until there is an answer that counts as true."""
    for _ in range(int(limit_s / 0.02)):
        if found := probe():
            return found
        time.sleep(0.02)
    raise AssertionError(f"nothing within {limit_s} s")
