"""Histories as Trainer pushes them, on a real Hub: titles suggest a step, contents decide."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import IntegrityError, NoAccess, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.commit_contents import SavedModel
from hubmerge.hub.history import Commit, read_history
from hubmerge.hub.mining import Title, commits_to_read, mine_revisions, parse_title
from hubmerge.hub.resolve import find_steps, list_steps, resolve
from hubmerge.refs import Revision, parse_ref, parse_step_pattern
from tests.hub.proxy import Proxy, replace_body, status

Files = dict[str, str | None]
Push = Callable[..., str]
LAST = "last-checkpoint"


def training(step: int) -> str:
    return f"Training in progress, step {step}"


def state(step: int) -> str:
    """A trainer_state.json as Trainer writes it: sorted keys, and a long log at the end."""
    log = [{"step": number, "loss": 0.5} for number in range(4000)]
    fields: dict[str, Any] = {"best_global_step": 1, "global_step": step, "log_history": log}
    return json.dumps(fields, indent=2, sort_keys=True)


def checkpoint(step: int, weights: str | None = None, folder: str = LAST) -> Files:
    """The files of a checkpoint that Trainer pushes; by default with the weights of its step."""
    return {
        f"{folder}/model.safetensors": weights or f"w{step}",
        f"{folder}/trainer_state.json": state(step),
    }


def root_weights(weights: int | str) -> Files:
    return {"model.safetensors": f"w{weights}"}


@pytest.fixture
def push(api: HfApi, repo: str) -> Push:
    """Commit files to main under a title; None deletes a file."""

    def commit(title: str, files: Files) -> str:
        operations = [
            CommitOperationDelete(path) if text is None else CommitOperationAdd(path, text.encode())
            for path, text in files.items()
        ]
        return str(api.create_commit(repo, operations, commit_message=title).oid)

    return commit


def found_steps(hub: Hub, repo: str) -> list[tuple[int | None, int | None, str, float]]:
    """Run, step, how it was found, and its confidence."""
    steps = find_steps(hub, repo, lambda what, done, total: None)
    return [(item.run, item.step, item.origin, item.confidence) for item in steps]


def only_step(hub: Hub, repo: str) -> Revision:
    (revision,) = find_steps(hub, repo, lambda what, done, total: None)
    return revision


def test_pushes_at_every_save(hub: Hub, repo: str, push: Push) -> None:
    shas = {step: push(training(step), root_weights(step)) for step in (2, 4, 8)}
    push("Model save", {"config.json": "{}"})
    push("End of training", {"README.md": "# done"})
    assert found_steps(hub, repo) == [(1, step, "title", 0.5) for step in (2, 4, 8)]
    revision = resolve(hub, parse_ref(f"{repo}@step4"))
    assert (revision.sha, revision.confidence) == (shas[4], 0.5)
    assert revision.note == "its step is known only from the commit's title"
    assert revision.label == f"{repo}@{shas[4][:12]}"
    assert resolve(hub, parse_ref(f"{repo}@checkpoint-8")).sha == shas[8]
    assert list_steps(hub, repo) == ()  # names only, with few requests


def test_pushes_with_the_checkpoint_strategy(hub: Hub, repo: str, push: Push) -> None:
    for step in (2, 4):
        push(training(step), root_weights(step))
        push(f"{training(step)}, checkpoint", checkpoint(step))
    # Each checkpoint proves the step of the same weights at the root, which has a tokenizer too.
    assert found_steps(hub, repo) == [(1, 2, "contents", 0.9), (1, 4, "contents", 0.9)]
    assert resolve(hub, parse_ref(f"{repo}@step2")).ref.subfolder is None


def test_a_last_checkpoint_with_weights_that_were_never_at_the_root(
    hub: Hub, repo: str, push: Push
) -> None:
    push(training(2), {"config.json": "{}"})
    sha = push(f"{training(2)}, checkpoint", checkpoint(2))
    push(f"{training(4)}, checkpoint", checkpoint(4))
    assert found_steps(hub, repo) == [(1, 2, LAST, 0.9), (1, 4, LAST, 0.9)]
    revision = resolve(hub, parse_ref(f"{repo}@step2"))
    assert (revision.sha, revision.ref.revision, revision.ref.subfolder) == (sha, sha, LAST)
    assert revision.label == f"{repo}@{sha[:12]}/{LAST}"


def test_the_trainer_state_wins_over_the_title(hub: Hub, repo: str, push: Push) -> None:
    push(f"{training(2)}, checkpoint", checkpoint(6))
    revision = only_step(hub, repo)
    assert (revision.step, revision.origin, revision.confidence) == (6, LAST, 0.8)
    assert revision.note == "its title says step 2, but its weights are those of step 6"


def test_titles_of_another_step_than_the_weights(hub: Hub, repo: str, push: Push) -> None:
    # hub_always_push with fast steps: a push reads the folder when it starts.
    push(training(2), root_weights(4))
    push(f"{training(2)}, checkpoint", checkpoint(2))
    push(training(4), root_weights(8))
    push(f"{training(4)}, checkpoint", checkpoint(4))
    push(training(6), root_weights(12))
    push(f"{training(8)}, checkpoint", checkpoint(8))
    assert found_steps(hub, repo) == [
        (1, 2, LAST, 0.9),
        (1, 4, LAST, 0.9),
        (1, 6, "title", 0.2),
        (1, 8, LAST, 0.9),
    ]
    with pytest.raises(NotOnHub, match="no revision 'step6'") as refused:
        resolve(hub, parse_ref(f"{repo}@step6"))
    assert "other titles of its run are wrong" in refused.value.hint
    assert f"{repo}@" in refused.value.hint
    assert resolve(hub, parse_ref(f"{repo}@step4")).ref.subfolder == LAST


def test_a_wrong_step_that_only_contents_correct(hub: Hub, repo: str, push: Push) -> None:
    push(training(2), root_weights(4) | checkpoint(4, folder="checkpoint-4"))
    push("remove checkpoints", {"checkpoint-4/model.safetensors": None})
    push(f"{training(4)}, checkpoint", checkpoint(4, folder="checkpoint-4"))
    assert [(step, source) for _, step, source, _ in found_steps(hub, repo)] == [(4, "folder")]
    push("remove checkpoints", dict.fromkeys(checkpoint(4, folder="checkpoint-4")))
    assert [(step, source) for _, step, source, _ in found_steps(hub, repo)] == [(4, LAST)]


def test_unchanged_weights_are_not_a_new_step(hub: Hub, repo: str, push: Push) -> None:
    push("upload a model", root_weights(7))
    push(training(2), {"config.json": "a"})  # not even this one: the weights were there before
    push(training(4), root_weights(4))
    push(training(6), {"config.json": "b"})
    push("somebody's own model", root_weights(9))
    push(training(8), {"config.json": "c"})
    assert found_steps(hub, repo) == [(1, 4, "title", 0.5)]


def test_commits_without_weights_are_left_out(hub: Hub, repo: str, push: Push) -> None:
    push(training(2), {"config.json": "a"})
    push(training(4), root_weights(4))
    push("clean up", {"model.safetensors": None})
    push(training(6), {"config.json": "b"})
    push(f"{training(8)}, checkpoint", {f"{LAST}/trainer_state.json": state(8)})
    assert found_steps(hub, repo) == [(1, 4, "title", 0.5)]


def test_weights_after_a_deletion_are_a_new_step(hub: Hub, repo: str, push: Push) -> None:
    push(training(2), root_weights(2))
    push("clean up", {"model.safetensors": None})
    push(training(4), root_weights(4))
    assert [step for _, step, *_ in found_steps(hub, repo)] == [2, 4]


def test_a_restart_is_a_new_run(hub: Hub, repo: str, push: Push) -> None:
    first = {step: push(training(step), root_weights(f"a{step}")) for step in (2, 4, 8)}
    second = {step: push(training(step), root_weights(f"b{step}")) for step in (2, 4)}
    assert [(run, step) for run, step, *_ in found_steps(hub, repo)] == [
        (1, 2), (1, 4), (1, 8), (2, 2), (2, 4),
    ]  # fmt: skip
    assert resolve(hub, parse_ref(f"{repo}@step8")).sha == first[8]
    with pytest.raises(UsageError, match="several revisions of step 2") as refused:
        resolve(hub, parse_ref(f"{repo}@step2"))
    names = [f"{repo}@{sha[:12]}" for sha in (first[2], second[2])]
    assert refused.value.hint == f"Write {names[0]} or {names[1]}."


def test_the_same_step_with_other_weights_is_a_new_run(hub: Hub, repo: str, push: Push) -> None:
    push(training(8), root_weights("a"))
    push(training(8), root_weights("b"))
    assert [(run, step) for run, step, *_ in found_steps(hub, repo)] == [(1, 8), (2, 8)]


def test_training_after_the_end_is_a_new_run(hub: Hub, repo: str, push: Push) -> None:
    push(training(2), root_weights(2))
    push("End of training", {"README.md": "a"})
    push(training(100), root_weights(100))
    assert [(run, step) for run, step, *_ in found_steps(hub, repo)] == [(1, 2), (2, 100)]


def test_other_weights_at_the_end_have_no_step(hub: Hub, repo: str, push: Push) -> None:
    push(training(2), root_weights(2))
    push("Model save", root_weights("best"))
    push("End of training", {"README.md": "a"})
    assert found_steps(hub, repo) == [(1, 2, "title", 0.5), (1, None, "end", 0.5)]
    push("End of training", root_weights(3) | {"trainer_state.json": state(3)})
    assert found_steps(hub, repo)[1:] == [(1, 3, "contents", 0.9), (1, None, "end", 0.5)]


def test_an_old_trainer_state_proves_no_step(hub: Hub, repo: str, push: Push) -> None:
    push("End of training", root_weights(8) | {"trainer_state.json": state(8)})
    push(training(2), root_weights(2))
    assert found_steps(hub, repo) == [(1, 8, "contents", 0.9), (2, 2, "title", 0.5)]


def test_titles_with_epochs(hub: Hub, repo: str, push: Push) -> None:
    push("Training in progress, epoch 1", root_weights(50))
    push("Training in progress, epoch 1, checkpoint", checkpoint(50))
    push("Training in progress, epoch 2", root_weights(100))
    steps = find_steps(hub, repo, lambda what, done, total: None)
    assert [(item.step, item.origin, item.note) for item in steps] == [
        (50, "contents", "epoch 1"), (None, "title", "epoch 2"),
    ]  # fmt: skip


def test_the_title_of_a_merged_pull_request(hub: Hub, repo: str, push: Push) -> None:
    sha = push(f"{training(2)} (#3)", root_weights(2))
    push(f"Merge branch 'x': {training(4)}", root_weights(4))
    assert (only_step(hub, repo).sha, only_step(hub, repo).step) == (sha, 2)


def test_an_upload_in_parts_is_complete_with_its_last(hub: Hub, repo: str, push: Push) -> None:
    push(f"{training(2)}, checkpoint", checkpoint(2))
    push(f"{training(4)}, checkpoint", {f"{LAST}/model.safetensors": "w4"})
    last_part = push(
        f"{training(4)}, checkpoint (part 2)", {f"{LAST}/trainer_state.json": state(4)}
    )
    assert found_steps(hub, repo) == [(1, 2, LAST, 0.9), (1, 4, LAST, 0.9)]
    assert resolve(hub, parse_ref(f"{repo}@step4")).sha == last_part


def test_titles_in_other_languages_are_ignored(hub: Hub, repo: str, push: Push) -> None:
    for title in (
        "训练中 步骤 500",
        "Entraînement en cours, étape 4",
        "Training in progress, step ٣",
    ):
        push(title, root_weights(title))
    assert found_steps(hub, repo) == []


def test_a_squashed_history(hub: Hub, repo: str, push: Push) -> None:
    # One commit with all files, under a title without a step.
    push("Super-squash branch 'main' using huggingface_hub", root_weights(4) | checkpoint(4))
    push("Update README.md", {"README.md": "a"})
    assert found_steps(hub, repo) == [(None, 4, "contents", 0.9)]
    push("Upload model", root_weights("other"))
    assert found_steps(hub, repo) == [(None, 4, LAST, 0.9)]


def test_the_only_commit_of_a_repository() -> None:
    saved = SavedModel("w", state="s", step=4)
    commits = [Commit("a" * 40, "Super-squash")]
    (revision,) = mine_revisions("o/n", commits, {"a" * 40: {"": saved}})
    assert (revision.step, revision.origin, revision.ref.subfolder) == (4, "contents", None)
    assert (
        mine_revisions("o/n", [Commit("a" * 40, "Super-squash")], {"a" * 40: {"": SavedModel("w")}})
        == []
    )


def test_the_state_in_a_checkpoint_folder_wins_over_its_name(
    hub: Hub, repo: str, push: Push
) -> None:
    push("all", checkpoint(2, folder="checkpoint-2") | checkpoint(4, folder="checkpoint-4"))
    push("none", {"checkpoint-6/config.json": "{}"})
    push("other", checkpoint(9, folder="checkpoint-8"))
    steps = find_steps(hub, repo, lambda what, done, total: None)
    assert [(item.step, item.ref.subfolder, item.note) for item in steps] == [
        (2, "checkpoint-2", ""),
        (4, "checkpoint-4", ""),
        (9, "checkpoint-8", "its trainer state says step 9"),
    ]


def test_checkpoint_folders_are_listed_once(hub: Hub, repo: str, push: Push) -> None:
    for step in (2, 4):
        push(training(step), root_weights(step))
        push(f"{training(step)}, checkpoint", checkpoint(step, folder=f"checkpoint-{step}"))
    assert found_steps(hub, repo) == [(None, 2, "folder", 0.9), (None, 4, "folder", 0.9)]
    # A thousand commits with up to a thousand folders each would fill the disk.
    (cache,) = hub.cache.rglob("contents.jsonl")
    lines = cache.read_text().splitlines()
    assert max(line.count('"checkpoint-') for line in lines) == 1


def test_a_tag_on_a_mined_commit_wins(hub: Hub, repo: str, push: Push, api: HfApi) -> None:
    push(training(2), root_weights(2))
    api.create_tag(repo, tag="step4", revision=push(training(4), root_weights(4)))
    assert found_steps(hub, repo) == [(1, 2, "title", 0.5), (None, 4, "tag", 1.0)]


def test_pickled_weights_are_noted(hub: Hub, repo: str, push: Push) -> None:
    push(training(2), {"pytorch_model.bin": "w2", "training_args.bin": "a"})
    push(training(4), {"training_args.bin": "b"})
    assert only_step(hub, repo).note == (
        "its step is known only from the commit's title; its weights are pickles; "
        "the title of step 4 is over the same weights"
    )


def test_two_titles_over_the_same_weights(hub: Hub, repo: str, push: Push) -> None:
    push(training(2), {"model.safetensors": "w2"})
    push(training(4), {"config.json": "changed"})
    push(training(6), {"model.safetensors": "w6"})
    steps = find_steps(hub, repo, lambda what, done, total: None)
    assert [step.step for step in steps] == [2, 6]
    assert "the title of step 4 is over the same weights" in steps[0].note
    assert "same weights" not in steps[1].note


def test_two_names_of_one_commit(hub: Hub, repo: str, api: HfApi) -> None:
    for name in ("step1000", "iter_0002000"):
        api.create_tag(repo, tag=name)
    steps = find_steps(hub, repo, lambda what, done, total: None)
    assert [(step.step, step.note) for step in steps] == [
        (1000, "its commit is also named as step 2000"),
        (2000, "its commit is also named as step 1000"),
    ]


def test_a_pattern_for_other_names(hub: Hub, repo: str, api: HfApi) -> None:
    for name in ("epoch-3", "epoch-12", "tokens-4B", "step7"):
        api.create_branch(repo, branch=name)
    steps = find_steps(hub, repo, lambda what, done, total: None)
    assert [(item.step, item.ref.revision) for item in steps] == [
        (7, "step7"), (None, "epoch-3"), (None, "epoch-12"), (None, "tokens-4B"),
    ]  # fmt: skip
    assert "3 counts epochs" in steps[1].note
    assert "4000000000 counts tokens" in steps[3].note
    by_epoch = dataclasses.replace(hub, step_pattern=parse_step_pattern(r"epoch-(\d+)"))
    assert [step.step for step in list_steps(by_epoch, repo)] == [3, 7, 12]
    assert resolve(by_epoch, parse_ref(f"{repo}@epoch-12")).step == 12


def test_numbers_of_checkpoints_are_not_steps(hub: Hub, repo: str, api: HfApi) -> None:
    for name in ("ckpt_356", "ckpt_99", "CrystalCoder_phase1_checkpoint_055500", "step7"):
        api.create_branch(repo, branch=name)
    steps = find_steps(hub, repo, lambda what, done, total: None)
    assert [(item.step, item.ref.revision) for item in steps] == [
        (7, "step7"),
        (None, "ckpt_99"),
        (None, "ckpt_356"),
        (None, "CrystalCoder_phase1_checkpoint_055500"),
    ]
    assert "356 counts checkpoints" in steps[2].note
    with pytest.raises(NotOnHub):
        resolve(hub, parse_ref(f"{repo}@step356"))


def test_results_are_cached(hub: Hub, repo: str, push: Push, proxy: Proxy) -> None:
    for step in (2, 4):
        push(training(step), root_weights(step))
        push(f"{training(step)}, checkpoint", checkpoint(step))
    first = found_steps(hub, repo)
    proxy.requests.clear()
    assert found_steps(hub, repo) == first
    assert proxy.count("/commits/") == 0
    assert proxy.count("/tree/") == 1  # the newest commit's folders
    assert proxy.count("/resolve/") == 0
    push(training(6), root_weights(6))
    proxy.requests.clear()
    assert [step for _, step, *_ in found_steps(hub, repo)] == [2, 4, 6]
    assert proxy.count("/commits/") == 1
    assert proxy.count("limit=50") == 1
    assert proxy.count("/tree/") == 2


def test_results_before_a_failure_are_cached(hub: Hub, repo: str, push: Push, proxy: Proxy) -> None:
    # More than one batch, newest first: the failure is in the second batch.
    oldest, *_ = [push(training(step), root_weights(step)) for step in range(66)]
    proxy.fail(f"GET .*/tree/{oldest}", status(403))
    with pytest.raises(NoAccess):
        found_steps(hub, repo)
    (cache,) = hub.cache.rglob("contents.jsonl")
    cache.write_bytes(cache.read_bytes() + b'["half')
    proxy.requests.clear()
    assert len(found_steps(hub, repo)) == 66
    assert proxy.count("/tree/") < 10


def test_a_repository_that_was_created_again_is_read_again(
    hub: Hub, repo: str, push: Push, api: HfApi
) -> None:
    for step in (2, 4):
        push(training(step), root_weights(step))
    assert len(found_steps(hub, repo)) == 2
    api.delete_repo(repo)
    api.create_repo(repo)
    assert found_steps(hub, repo) == []
    push(training(6), root_weights(6))
    assert [step for _, step, *_ in found_steps(hub, repo)] == [6]


def test_a_history_with_merges_is_read_further(hub: Hub, repo: str, proxy: Proxy) -> None:
    def page(*numbers: int) -> bytes:
        return json.dumps([{"id": f"{n:040x}", "title": f"t{n}"} for n in numbers]).encode()

    def read(head: int, *numbers: int) -> list[int]:
        proxy.fail("GET .*/commits/", replace_body(page(*numbers)))
        commits = read_history(hub, repo, f"{head:040x}", lambda what, done, total: None)
        return [int(commit.sha, 16) for commit in commits]

    assert read(3, 3, 2, 1) == [3, 2, 1]
    # 5 merges 4, which is older than 3: not all commits after the known 3 are known.
    assert read(5, 5, 3, 4, 2, 1) == [5, 3, 4, 2, 1]
    assert read(6, 6, 5, 3, 4) == [6, 5, 3, 4, 2, 1]
    with pytest.raises(IntegrityError, match="does not start"):
        read(7, 6, 5)
    proxy.fail("GET .*/commits/", replace_body(b'[{"id": "../.."}]'))
    with pytest.raises(IntegrityError, match="lists an invalid commit"):
        read_history(hub, repo, "f" * 40, lambda what, done, total: None)


def test_ten_thousand_commits_are_mined() -> None:
    titles = [f"Training in progress, step {step}" for step in range(1, 5001)] * 2
    commits = [Commit(f"{number:040x}", title) for number, title in enumerate(titles)][::-1]
    contents = {item.sha: {"": SavedModel(weights=item.sha)} for item in commits}
    assert commits_to_read(commits).keys() == contents.keys()
    revisions = mine_revisions("o/n", commits, contents)
    assert [(item.run, item.step) for item in revisions] == [
        (run, step) for run in (1, 2) for step in range(1, 5001)
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Training in progress, step 500", Title("step", 500)),
        ("Training in progress, step 500, checkpoint", Title("step", 500, True)),
        ("Training in progress, step 500 (part 2)", Title("step", 500, part=2)),
        ("Training in progress, step 500, checkpoint (part 3) (#7)", Title("step", 500, True, 3)),
        ("Training in progress, epoch 3", Title("epoch", 3)),
        ("Model save", Title("end")),
        ("End of training (#12)", Title("end")),
        ("step-000500", Title("step", 500)),
        ("global_step500", Title("step", 500)),
        ("checkpoint-500", Title("step", 500)),
        ("checkpoint 5", None),
        ("ckpt_5", None),
        ("Fix step 3 of the README", None),
        ("Training in progress, step -5", None),
        ("Training in progress, step 1e3", None),
        ("Training in progress, step " + "9" * 400, None),
        ("Training in progress, step 5\x1b[31m", None),
        ("Training in progress, step 5\n", None),
        ("\u202eTraining in progress, step 5", None),
        ("", None),
    ],
)
def test_titles_are_parsed(text: str, title: Title | None) -> None:
    assert parse_title(text) == title


@given(st.text(max_size=400))
def test_any_text_can_be_parsed(text: str) -> None:
    if title := parse_title(text):
        assert text.isascii()
        assert title.number is None or str(title.number) in text


@given(
    number=st.integers(0, 10**11),
    checkpoint=st.sampled_from(["", ", checkpoint"]),
    tail=st.sampled_from(["", " (part 2)", " (#1)", " (part 2) (#1)"]),
)
def test_every_title_of_trainer_is_parsed(number: int, checkpoint: str, tail: str) -> None:
    title = parse_title(f"{training(number)}{checkpoint}{tail}")
    assert title is not None
    assert (title.number, title.is_checkpoint) == (number, bool(checkpoint))


@given(st.lists(st.tuples(
    st.sampled_from([training(2), training(4), f"{training(4)}, checkpoint", "Model save", "other",
                     f"{training(4)} (part 2)", "Training in progress, epoch 1"]),
    st.sampled_from([None, "a", "b"]), st.sampled_from([None, 2, 4]),
), min_size=1, max_size=12))  # fmt: skip
def test_no_history_gives_weights_a_wrong_step(
    history: list[tuple[str, str | None, int | None]],
) -> None:
    commits = [Commit(f"{number:040x}", title) for number, (title, *_) in enumerate(history)][::-1]
    contents = {
        commit.sha: {"": SavedModel(weights), LAST: SavedModel(weights, state=str(step), step=step)}
        for commit, (_, weights, step) in zip(commits, reversed(history), strict=True)
    }
    proven: dict[str, set[int]] = {}
    for _, weights, step in history:
        if weights and step is not None:
            proven.setdefault(weights, set()).add(step)
    revisions = mine_revisions("o/n", commits, contents)
    steps = [(item.run, item.step) for item in revisions if item.step is not None]
    assert len(steps) == len(set(steps))
    for revision in revisions:
        saved = contents[revision.sha][revision.ref.subfolder or ""]
        assert saved.weights is not None
        if revision.confidence > 0.5:
            assert revision.step in proven[saved.weights]
