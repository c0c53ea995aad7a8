"""A Hub that takes no commits for hours: training goes on, and no step is lost or out of order."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from hubmerge.errors import HubUnreachable
from hubmerge.flows.mirror import Transfer, mirror
from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Outbox, Publisher
from hubmerge.hub.publish import Publication, publish
from hubmerge.server.faults import Fault
from hubmerge.server.names import RepoId
from tests.faulty_hub import FaultyHub, serve_faulty_hub
from tests.hub.conftest import FAULTY_REPO as REPO
from tests.hub.conftest import step_publication, tags, write_step_folder

COMMIT = "POST .*/commit/"
STEPS = (1, 2, 4, 8, 16)
# What huggingface.co answers, without a header.
SENTENCE = (
    "You have exceeded the rate limit for repository commits (128 per hour). You can retry this "
    "action in about 1 hour. To reduce the number of commits, you can upload entire folders."
)


@pytest.fixture
def hub(faulty: FaultyHub, tmp_path: Path) -> Hub:
    return faulty.hub(tmp_path / "cache")


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    outbox = Outbox(tmp_path / "run")
    for step in STEPS:
        write_step_folder(outbox.step_folder(step), step)
    return outbox


def start(faulty: FaultyHub, hub: Hub, outbox: Outbox, warnings: list[str]) -> Publisher:
    def publication_of(step: int) -> Publication:
        return step_publication(REPO, outbox.step_folder(step), step)

    return Publisher(hub, outbox, publication_of, warnings.append, faulty.clock.clock)


def titles(faulty: FaultyHub) -> list[str]:
    return [commit.title for commit in reversed(faulty.api.list_repo_commits(REPO))][1:]


def test_a_quota_of_commits_delays_the_steps_beyond_it(
    faulty: FaultyHub, hub: Hub, outbox: Outbox
) -> None:
    faulty.plan(Fault(request=COMMIT, fault="quota", limit=2, seconds=3600))
    warnings: list[str] = []
    publisher = start(faulty, hub, outbox, warnings)
    while publisher.unpublished:  # training, which ends after the steps are published
        threading.Event().wait(0.01)
    assert publisher.close(60.0) == {
        int(name.removeprefix("step")): sha for name, sha in tags(faulty.api, REPO).items()
    }
    # Two, an hour, two, an hour, one: as many commits as steps, and one refusal for each wait.
    assert faulty.clock.waits == [3600.0, 3600.0]
    assert faulty.count("/commit/main") == len(STEPS) + 2
    assert titles(faulty) == [f"Step {step}" for step in STEPS]
    assert [re.findall(r"step\d+", text)[0] for text in warnings] == ["step4", "step16"]


def test_at_the_end_of_training_hours_are_not_waited_for(
    faulty: FaultyHub, hub: Hub, outbox: Outbox
) -> None:
    faulty.plan(
        Fault(request=COMMIT, fault="status", status=429, retry_after=7200, after=1, times=None)
    )
    warnings: list[str] = []
    waiting = threading.Event()
    faulty.clock.at_wait.append(waiting)
    publisher = start(faulty, hub, outbox, warnings)
    waiting.wait()
    with pytest.raises(HubUnreachable) as caught:
        publisher.close(60.0)
    error = caught.value
    assert error.exit_code == 75
    assert error.message.startswith(f"4 of 5 steps wait in {outbox.steps_folder}: ")
    assert "(HTTP 429), committing 'Step 2' to me/expert: The fault plan says so." in error.message
    assert re.search(r"It asks to wait 7200 s, until (\d{4}-\d\d-\d\d )?\d\d:\d\d\.", error.hint)
    assert "run the same command again" in error.hint
    [warning] = warnings
    assert re.search(
        rf"step2 and later steps wait in {outbox.steps_folder} until .*; training goes on\.",
        warning,
    )
    # The Hub was not asked again before its time.
    assert faulty.count("/commit/main") == 2
    assert publisher.unpublished == STEPS[1:]
    assert list(tags(faulty.api, REPO)) == ["step1"]

    faulty.plan()  # two hours later, by the same command
    assert start(faulty, hub, outbox, warnings).close(60.0).keys() == set(STEPS)
    assert titles(faulty) == [f"Step {step}" for step in STEPS]
    assert faulty.count("/commit/main") == len(STEPS) - 1


def test_a_wait_that_patience_covers_is_waited_for(
    faulty: FaultyHub, hub: Hub, outbox: Outbox
) -> None:
    faulty.plan(Fault(request=COMMIT, fault="status", status=429, retry_after=100))
    waiting = threading.Event()
    faulty.clock.at_wait.append(waiting)
    publisher = start(faulty, hub, outbox, [])
    waiting.wait()
    assert publisher.close(200.0).keys() == set(STEPS)
    assert faulty.clock.waits == [100.0, 100.0]


@pytest.mark.parametrize(
    "request_", ["POST .*/preupload/", "POST .*/objects/batch", "GET .*/tree/", "POST .*/tag/"]
)
def test_the_client_does_not_sleep_for_hours_in_any_request(
    faulty: FaultyHub, hub: Hub, outbox: Outbox, request_: str
) -> None:
    faulty.plan(Fault(request=request_, fault="status", status=429, retry_after=7200, times=None))
    with pytest.raises(HubUnreachable, match="HTTP 429") as caught:
        publish(hub, step_publication(REPO, outbox.step_folder(16), 16))
    assert "It asks to wait 7200 s" in caught.value.hint


@pytest.mark.parametrize(("sentence", "seconds"), [
    (SENTENCE, 3600), ("You can retry this action in 43 minutes.", 43 * 60),
    ("You can retry this action in 1 day.", 86400), ("Try again in about an hour.", 3600),
])  # fmt: skip
def test_the_sentence_of_the_public_hub_is_read(
    faulty: FaultyHub, hub: Hub, outbox: Outbox, sentence: str, seconds: int
) -> None:
    faulty.plan(Fault(request=COMMIT, fault="status", status=429, message=sentence, times=None))
    with pytest.raises(HubUnreachable) as caught:
        publish(hub, step_publication(REPO, outbox.step_folder(1), 1))
    assert sentence in caught.value.message
    assert f"It asks to wait {seconds} s" in caught.value.hint
    assert faulty.count("/commit/main") == 1


def test_many_waiting_steps_arrive_by_one_push_with_a_commit_and_a_tag_each(
    faulty: FaultyHub, hub: Hub, outbox: Outbox, tmp_path: Path
) -> None:
    """`hub pull`, `publish --hub local` and `hub push`, when the Hub takes no more commits."""
    steps = {step: step_publication(REPO, outbox.step_folder(step), step) for step in STEPS}
    commits = {step: publish(hub, steps[step]) for step in STEPS[:2]}
    with serve_faulty_hub(tmp_path / "local") as local:
        near, id = local.hub(tmp_path / "near"), RepoId("models", *REPO.split("/"))
        transfer = [Transfer(id, id)]
        mirror(hub, near, transfer, tmp_path / "pulled", lambda *_: None)
        commits |= {step: publish(near, steps[step]) for step in STEPS[2:]}
        faulty.plan(Fault(request=COMMIT, fault="status", status=429, times=None))
        mirror(near, hub, transfer, tmp_path / "pushed", lambda *_: None)
    assert faulty.count("git-receive-pack") == 1
    assert tags(faulty.api, REPO) == {f"step{step}": sha for step, sha in commits.items()}
    assert titles(faulty) == [f"Step {step}" for step in STEPS]
    assert {publish(hub, steps[step]) for step in STEPS} == set(commits.values())
