"""`hubmerge select` with workers: the same lock as alone, also if one is killed midway."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hubmerge.trials import TrialLog
from tests.end_to_end.conftest import REPOS, Command, CommandResult, LocalHub

Select = Callable[..., tuple[CommandResult, bytes, bytes]]


@pytest.fixture
def select(hubmerge: Command, local_hub: LocalHub, tmp_path: Path) -> Iterator[Select]:
    """Run a selection that finds an empty log; returns its result, its lock and its log."""
    log, aside = local_hub.home / "trials.jsonl", local_hub.home / "trials-aside.jsonl"
    if log.exists():
        log.rename(aside)

    def run(*words: object) -> tuple[CommandResult, bytes, bytes]:
        path = tmp_path / "l.lock"
        options = ("--target", "task_arithmetic", "--budget", "4", "--lock", path)
        result = hubmerge("select", *REPOS, *options, *words)
        assert result.code in (0, 4), result.err
        lock, lines = path.read_bytes(), log.read_bytes()
        path.unlink()
        log.unlink()
        return result, lock, lines

    yield run
    if aside.exists():
        aside.rename(log)


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended
            if "hubmerge.flows.select_worker" in child.cmdline():
                found.append(child)
    return found


def kill_one_midway(log: Path) -> None:
    """Kill a worker once two trials are in the log."""
    while not log.exists() or len(TrialLog(log).read()) < 2:
        time.sleep(0.01)
    workers()[0].send_signal(signal.SIGKILL)


@pytest.mark.slow  # the next test is the same with a killed worker
def test_two_workers_give_the_lock_of_one(select: Select) -> None:
    _, alone, trials = select()
    _, shared, shared_trials = select("--workers", 2)
    assert shared == alone
    assert shared_trials == trials
    assert workers() == []


@pytest.mark.slow
@pytest.mark.usefixtures("warm_processes")
def test_a_killed_worker_does_not_change_the_lock(select: Select, local_hub: LocalHub) -> None:
    _, alone, _ = select()
    killer = threading.Thread(target=kill_one_midway, args=(local_hub.home / "trials.jsonl",))
    killer.start()
    _, shared, _ = select("--workers", 2)
    killer.join()
    assert shared == alone
    assert workers() == []


@pytest.mark.parametrize(("words", "message"), [
    (("--ray-address", "auto"), "--ray-address needs --engine ray"),
    (("--target", "moe", "--workers", "2"), "--workers and --engine are for merges"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    hubmerge: Command, words: tuple[str, ...], message: str
) -> None:
    target = () if "--target" in words else ("--target", "ties")
    result = hubmerge("select", *REPOS, *target, *words)
    assert result.code == 2
    assert message in result.err


@pytest.mark.slow
def test_ray_gives_the_lock_of_one_process_when_an_actor_is_killed(
    select: Select, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
    _, alone, _ = select()

    def kill_actor() -> None:
        log = local_hub.home / "trials.jsonl"
        while not log.exists() or len(TrialLog(log).read()) < 2:
            time.sleep(0.01)
        actors = [
            process
            for process in psutil.Process().children(recursive=True)
            if "RowActor" in " ".join(process.cmdline())
        ]
        actors[0].kill()

    killer = threading.Thread(target=kill_actor)
    killer.start()
    _, shared, _ = select("--engine", "ray", "--workers", 2)
    killer.join()
    assert shared == alone
