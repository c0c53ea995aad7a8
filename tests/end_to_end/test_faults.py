"""Training and merging while the Hub, the disk or the user interrupts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hubmerge.hub.client import Hub
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.server.faults import Fault
from tests import locks
from tests.command_line import run_command
from tests.end_to_end.conftest import REPOS, Command, LocalHub
from tests.faulty_hub import FaultyHub, serve_faulty_hub
from tests.hub.conftest import tags

ROOT = Path(__file__).parents[2]
STEPS = (1, 2, 3, 4)
TRAIN = (
    "train", "--base", "hubmerge/tiny-clip", "--task", "mini-mnist", "--steps", "4",
    "--push-every", "1", "--batch", "4", "--warmup-steps", "0", "--lr", "5e-4",
)  # fmt: skip


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    with serve_faulty_hub(tmp_path_factory.mktemp("faulty") / "data", with_base=True) as hub:
        yield hub


def titles(api: HfApi, repo: str) -> list[str]:
    return [commit.title for commit in reversed(api.list_repo_commits(repo))][1:]


def test_a_hub_that_takes_no_commits_for_hours_does_not_stop_training(
    hubmerge: Command, faulty: FaultyHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", faulty.url)
    monkeypatch.setenv("HF_TOKEN", faulty.token)
    words = (*TRAIN, "--to", "me/expert", "--out", tmp_path / "run")
    faulty.plan(
        Fault(request="POST .*/commit/", fault="status", status=429, retry_after=7200, times=None)
    )
    done = run_command(*words, hub=None)
    assert done.exit_code == 75, done.output
    steps = tmp_path / "run" / "steps"
    assert f"step1 and later steps wait in {steps} until " in done.stderr
    assert f"Error: 4 of 4 steps wait in {steps}: " in done.stderr
    assert re.search(r"run the same command again.* It asks to wait \d+ s, until", done.stderr)
    assert sorted(path.name for path in steps.iterdir()) == [f"step{step}" for step in STEPS]
    assert tags(faulty.api, "me/expert") == {}

    faulty.plan(Fault(request="POST .*/commit/", fault="quota", limit=2))
    elsewhere = ("publish", steps, "--to", "me/second")
    done = run_command(*elsewhere, hub=None)
    assert done.exit_code == 75
    assert "2 of 4 steps are not published yet, from step3 on: " in done.stderr
    assert list(tags(faulty.api, "me/second")) == ["step1", "step2"]

    faulty.plan()
    assert run_command(*elsewhere, hub=None).exit_code == 0
    assert titles(faulty.api, "me/second") == [f"Step {step} of mini-mnist" for step in STEPS]
    again = run_command(*words, hub=None)  # two hours later; nothing is trained again
    assert again.exit_code == 0, again.output
    assert titles(faulty.api, "me/expert") == [f"Step {step} of mini-mnist" for step in STEPS]
    assert tags(faulty.api, "me/expert").keys() == {f"step{step}" for step in STEPS}


@pytest.mark.slow
@pytest.mark.parametrize("sent", [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM,) * 2,
                                  (signal.SIGINT,) * 2])  # fmt: skip
def test_a_signal_ends_training_and_the_same_command_finishes_it(
    python: Path, local_hub: LocalHub, api: HfApi, tmp_path: Path, sent: tuple[signal.Signals, ...]
) -> None:
    repo = f"signals/{'-'.join(number.name.lower() for number in sent)}"
    words = [*TRAIN, "--to", repo, "--out", str(tmp_path / "run"), "--steps", "60",
             "--push-every", "1,2,4,60"]  # fmt: skip
    environment = {**os.environ, "HUBMERGE_HOME": str(local_hub.home), "HUBMERGE_HUB": "local"}
    process = subprocess.Popen(
        [str(python), "-m", "hubmerge", *words], cwd=ROOT, env=environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "run" / "steps" / "step2").is_dir():
        assert process.poll() is None
        time.sleep(0.01)
    for number in sent:
        process.send_signal(number)
        time.sleep(0.05)
    code = process.wait()
    assert code in {128 + sent[0], -sent[0]}, process.stderr.read() if process.stderr else ""
    assert "step60" not in tags(api, repo)
    if len(sent) == 1:  # what was saved is published before it ends
        saved = {path.name for path in (tmp_path / "run" / "steps").iterdir()}
        assert tags(api, repo).keys() == {name for name in saved if name.startswith("step")}
    done = subprocess.run(
        [str(python), "-m", "hubmerge", *words], cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert tags(api, repo).keys() == {"step1", "step2", "step4", "step60"}
    assert len(titles(api, repo)) == 4


def test_a_lock_follows_a_renamed_and_squashed_repository(
    hubmerge: Command, hub: Hub, api: HfApi, tmp_path: Path
) -> None:
    repos = ("moved/mnist", "moved/hebrew")
    for original, copy in zip(REPOS, repos, strict=True):
        locks.copy_steps(api, original, copy, tmp_path / "steps")
    lock = locks.write_lock(locks.make_lock(hub, repos), tmp_path / LOCK)
    api.super_squash_history(repos[0], branch="main")
    api.move_repo(repos[0], "moved/digits")
    words = ("merge", "--lock", lock, "--locked")
    result = hubmerge(*words, "--out", tmp_path / "m")
    assert result.code == 0, result.err


@pytest.mark.parametrize("words", [
    ("merge", *(f"{repo}@step8" for repo in REPOS), "--out", "{home}/merged"),
    (*TRAIN, "--to", "me/none"),
    ("steps", "demo/mnist"),
])  # fmt: skip
def test_a_home_that_cannot_be_written_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], tmp_path: Path
) -> None:
    # A folder of the kernel: not even root may write there.
    monkeypatch.setenv("HUBMERGE_HOME", "/sys/hubmerge")
    done = run_command(*(word.replace("{home}", str(tmp_path)) for word in words))
    assert done.exit_code == 1, done.output
    assert "/sys/hubmerge" in done.stderr
    assert "bug" not in done.stderr
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_second_process_does_not_train_in_the_same_folder(
    hubmerge: Command, faulty: FaultyHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", faulty.url)
    monkeypatch.setenv("HF_TOKEN", faulty.token)
    words = (*TRAIN, "--to", "me/twice", "--out", str(tmp_path / "run"))
    faulty.plan(Fault(request="POST .*/commit/", fault="drip", delay=0.01))
    codes: list[int] = []
    first = threading.Thread(
        target=lambda: codes.append(run_command(*words, hub=None).exit_code), daemon=True
    )
    first.start()
    while not (tmp_path / "run" / ".lock").exists():
        time.sleep(0.005)
    second = run_command(*words, hub=None)
    first.join()
    assert codes == [0]
    assert (second.exit_code, "Another process is training" in second.stderr) == (75, True)
    assert len(titles(faulty.api, "me/twice")) == 4
