"""Whatever fails around a Trainer, training goes on and nothing is lost."""

from __future__ import annotations

import resource
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from transformers import TrainerCallback

from hubmerge import PushSteps
from hubmerge.hub import client, outbox, publish
from hubmerge.server import ServerState
from tests.callbacks.builders import (
    STEPS,
    KeepCopies,
    load,
    make_trainer,
    published_manifest,
    published_weights,
    tags,
)
from tests.command_line import run_command
from tests.hub.proxy import Proxy, lose_response, reset_connection, run_proxy, status


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter delays between attempts, for a Hub on the same machine; as many as usual."""
    for module in (client, publish, outbox):
        delays = [delay_s / 200 for delay_s in module._RETRY_DELAYS_S]
        monkeypatch.setattr(module, "_RETRY_DELAYS_S", tuple(delays))


@pytest.fixture
def proxy(server: ServerState, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The Hub of HF_ENDPOINT: the embedded one behind a proxy that fails on demand."""
    with run_proxy(server.url) as proxy:
        monkeypatch.setenv("HF_ENDPOINT", proxy.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield proxy


@pytest.mark.slow
def test_failures_of_the_hub_leave_every_tag(
    base: Path, tmp_path: Path, api: HfApi, repo: str, proxy: Proxy, sentences: list[str]
) -> None:
    for code in (500, 503, 429):
        proxy.fail("POST .*/commit/", status(code))
    proxy.fail("POST .*/commit/", lose_response)
    proxy.fail("POST .*/tag/", lose_response)
    proxy.fail("POST .*/tag/", status(500))
    proxy.fail("GET .*/refs", reset_connection, times=3)
    proxy.fail("PUT ", status(503), times=2)
    copies = KeepCopies()
    # Weights that no other test has uploaded, or nothing would be sent by PUT.
    make_trainer(load(base), tmp_path, [copies, PushSteps(repo)], learning_rate=3e-3).train()
    assert proxy.faults == []
    assert published_weights(api, repo) == {step: copies.weights[step] for step in STEPS}
    assert len(api.list_repo_commits(repo)) == 1 + len(STEPS)
    assert sentences == []


def test_a_dead_hub_fills_the_outbox_and_a_command_publishes_it_later(
    base: Path, tmp_path: Path, api: HfApi, repo: str, proxy: Proxy, sentences: list[str]
) -> None:
    proxy.fail(".", reset_connection, times=10_000)
    copies, steps = KeepCopies(), PushSteps(repo, push_every=2, patience_s=0.0, task="mini-movie")
    trainer = make_trainer(load(base), tmp_path, [copies, steps], max_steps=4)
    assert trainer.train().global_step == 4
    left = sentences[-1]
    assert left.startswith(f"2 steps are in {steps.folder}/steps and not on the Hub: ")
    assert "Run the script again, or publish them with: " in left
    assert left.count("steps wait in") == 0

    proxy.faults.clear()
    command = shlex.split(left.partition("with: ")[2])
    assert run_command(*command[1:], hub=None).exit_code == 0
    assert published_weights(api, repo) == {step: copies.weights[step] for step in (2, 4)}
    manifest = published_manifest(api, repo, 4, tmp_path / "manifest")
    assert (manifest.step, manifest.base.name, manifest.task_name) == (4, str(base), "mini-movie")
    head = [commit.commit_id for commit in api.list_repo_commits(repo)]

    again = PushSteps(repo, push_every=2, task="mini-movie")  # the script: all is there
    make_trainer(load(base), tmp_path, [again], max_steps=4).train()
    assert [commit.commit_id for commit in api.list_repo_commits(repo)] == head
    assert again.commits.keys() == {2, 4}


def test_a_run_without_a_token_keeps_its_steps(
    base: Path, tmp_path: Path, repo: str, proxy: Proxy, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("HF_TOKEN")
    steps = PushSteps(repo)
    make_trainer(load(base), tmp_path, [steps], max_steps=2).train()
    begin, end = sentences
    assert "Training goes on, and its steps are saved in" in begin
    assert "hf auth login" in begin
    assert f"2 steps are in {steps.folder}/steps and not on the Hub" in end
    assert (Path(str(steps.folder)) / "steps" / "step2" / "hubmerge.json").is_file()


def test_a_full_disk_costs_its_step_alone(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FullDisk(TrainerCallback):
        """No file may have more than 2 kB while step 2 is saved."""

        def on_pre_optimizer_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    steps, copies = PushSteps(repo, [2, 4], hub="local"), KeepCopies()
    trainer = make_trainer(load(base), tmp_path, [FullDisk(), steps, copies], max_steps=4)
    copies.on_step_end = lambda *_, **__: None  # type: ignore[method-assign]
    assert trainer.train().global_step == 4
    assert list(tags(api, repo)) == ["step4"]
    assert len(sentences) == 1
    assert sentences[0].startswith("step2 is missing: it could not be saved (")


def test_a_repository_with_something_else_is_left_alone(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    api.create_repo(repo)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo)
    head = api.model_info(repo).sha
    make_trainer(load(base), tmp_path, [PushSteps(repo, hub="local")], max_steps=1).train()
    assert api.model_info(repo).sha == head
    assert "holds other files on main" in sentences[0]


def test_a_notebook_runs_its_cell_again_after_an_error(
    base: Path, tmp_path: Path, api: HfApi, repo: str, sentences: list[str]
) -> None:
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 2:
                raise KeyboardInterrupt

    for more in ([Interrupt()], []):
        callbacks = [PushSteps(repo, hub="local"), *more]
        trainer = make_trainer(load(base), tmp_path, callbacks, max_steps=4)
        with suppress(KeyboardInterrupt):
            trainer.train()
    assert list(tags(api, repo)) == ["step1", "step2", "step4"]
    assert sentences == []
