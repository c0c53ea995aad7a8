"""The outbox publishes in order, in the background, through outages, and names what is left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from tests.faulty_hub import FakeClock
from tests.hub.conftest import step_publication, tags, write_step_folder
from tests.hub.proxy import Proxy, run_first, run_proxy, status

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "run")


def publications_of(outbox: Outbox, repo: str) -> Callable[[int], Publication]:
    return lambda step: step_publication(repo, outbox.step_folder(step), step)


def save_steps(outbox: Outbox, *steps: int) -> None:
    for step in steps:
        write_step_folder(outbox.step_folder(step), step)


def titles(api: HfApi, repo: str) -> list[str]:
    """The titles of the commits, oldest first, without the initial commit."""
    return [commit.title for commit in reversed(api.list_repo_commits(repo))][1:]


def test_saved_steps_are_complete_folders_only(outbox: Outbox) -> None:
    assert outbox.saved_steps() == ()
    for name in ("step16", "step2", ".step4.partial", "step8.partial", "checkpoint-8", "notes"):
        (outbox.steps_folder / name).mkdir(parents=True)
    assert outbox.saved_steps() == (2, 16)


def test_steps_are_published_in_order_while_more_are_saved(
    hub: Hub, repo: str, outbox: Outbox, api: HfApi
) -> None:
    save_steps(outbox, 2, 1)
    publisher = Publisher(hub, outbox, publications_of(outbox, repo))
    for step in (4, 8):
        save_steps(outbox, step)
        publisher.notify()
    assert publisher.close(5.0) == tags_by_step(api, repo)
    assert titles(api, repo) == ["Step 1", "Step 2", "Step 4", "Step 8"]
    assert publisher.unpublished == ()


def test_a_later_run_publishes_what_is_left(
    hub: Hub, repo: str, outbox: Outbox, api: HfApi, proxy: Proxy
) -> None:
    save_steps(outbox, 1, 2, 4)
    proxy.fail("POST .*/tag/", run_first(lambda: proxy.fail(".", status(503), times=10_000)))
    publisher = Publisher(hub, outbox, publications_of(outbox, repo))
    publisher.notify()
    with pytest.raises(HubUnreachable) as caught:
        publisher.close(0.5)
    assert caught.value.exit_code == 75
    assert f"2 of 3 steps wait in {outbox.steps_folder}: " in caught.value.message
    assert publisher.unpublished == (2, 4)

    proxy.faults.clear()
    assert Publisher(hub, outbox, publications_of(outbox, repo)).close(5.0) == tags_by_step(
        api, repo
    )
    assert titles(api, repo) == ["Step 1", "Step 2", "Step 4"]


def test_the_publisher_waits_as_long_as_the_hub_asks(
    hub: Hub, repo: str, outbox: Outbox, proxy: Proxy
) -> None:
    """Also longer than the deadline of a call."""
    clock = FakeClock()
    save_steps(outbox, 1)
    proxy.fail("GET .*/revision/", status(429, Retry_After="3600"))
    publisher = Publisher(hub, outbox, publications_of(outbox, repo), clock=clock.clock)
    wait_until(lambda: not publisher.unpublished)
    assert clock.waits == [3600.0]
    assert publisher.close(5.0).keys() == {1}


def test_a_refusal_is_raised_by_close_and_not_before(
    hub: Hub, repo: str, outbox: Outbox, server: ServerState, proxy: Proxy
) -> None:
    tokens = Tokens(server.data)
    text = tokens.file.read_text()
    revoked = tokens.create("revoked", "write")
    tokens.file.write_text(text)
    save_steps(outbox, 1)
    publisher = Publisher(
        replace(hub, sign_in=lambda: revoked), outbox, publications_of(outbox, repo)
    )
    wait_until(lambda: proxy.requests)
    save_steps(outbox, 2)
    publisher.notify()
    with pytest.raises(NoAccess, match=r"2 of 2 steps wait in .*: the test Hub does not") as caught:
        publisher.close(60.0)
    assert "hf auth login" in caught.value.hint
    assert revoked not in caught.value.message


def test_other_bytes_under_a_tag_are_an_error(
    hub: Hub, repo: str, outbox: Outbox, tmp_path: Path
) -> None:
    publish(hub, step_publication(repo, write_step_folder(tmp_path / "other", 1, seed=1), 1))
    save_steps(outbox, 1)
    with pytest.raises(IntegrityError, match="has other bytes"):
        Publisher(hub, outbox, publications_of(outbox, repo)).close(60.0)


def test_a_bug_in_the_thread_is_raised_by_close(hub: Hub, outbox: Outbox) -> None:
    def broken(step: int) -> Publication:
        raise KeyError(step)

    save_steps(outbox, 1)
    with pytest.raises(HubmergeError, match="KeyError"):
        Publisher(hub, outbox, broken).close(60.0)


def test_an_outage_only_delays_publishing(tmp_path: Path, outbox: Outbox) -> None:
    with RestartableHub(tmp_path / "data") as server:
        state = server.start()
        api = HfApi(endpoint=state.url, token=state.token)
        api.create_repo("hub-tests/outage")
        with run_proxy(state.url) as proxy, ThreadPoolExecutor() as pool:

            def wait_for_request() -> None:
                count = len(proxy.requests)
                wait_until(lambda: len(proxy.requests) > count)

            hub = Hub(proxy.url, lambda: state.token, tmp_path / "cache", "the test Hub")
            save_steps(outbox, 1)
            publisher = Publisher(hub, outbox, publications_of(outbox, "hub-tests/outage"))
            wait_until(lambda: not publisher.unpublished)

            server.stop()
            for step in (2, 4, 8):
                save_steps(outbox, step)
                publisher.notify()
                wait_for_request()
            assert publisher.unpublished == (2, 4, 8)
            commits = pool.submit(publisher.close, 120.0)
            wait_for_request()
            server.start(state.port)

            assert commits.result() == tags_by_step(api, "hub-tests/outage")
            assert titles(api, "hub-tests/outage") == ["Step 1", "Step 2", "Step 4", "Step 8"]


class RestartableHub:
    """A Hub of its own on one data folder, which can be stopped and started again."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> RestartableHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, port: int = 0) -> ServerState:
        words = ["-m", "hubmerge.server", "--data", self.data, "--port", port, "--no-seed"]
        command = [sys.executable, *map(str, words)]
        self.processes.append(subprocess.Popen(command, cwd=ROOT))
        return wait_until(lambda: read_state(self.data))

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def tags_by_step(api: HfApi, repo: str) -> dict[int, str]:
    return {int(name.removeprefix("step")): sha for name, sha in tags(api, repo).items()}


def wait_until(probe: Callable[[], T | None], polls: int = 3000) -> T:
    """Poll until the probe returns a true value."""
    for _ in range(polls):
        if value := probe():
            return value
        time.sleep(0.02)
    raise AssertionError(f"nothing after {polls} polls")
