"""Repositories that move between two Hubs and folders: same commits, tags and bytes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from hubmerge.durable import try_lock
from hubmerge.errors import Busy, IntegrityError, NotOnHub, UsageError
from hubmerge.flows.mirror import Transfer, TransferResult, mirror
from hubmerge.hub.client import Hub
from hubmerge.hub.mirror_folder import MirrorFolder
from hubmerge.progress import no_progress
from hubmerge.server import ServerState, lease
from hubmerge.server.names import RepoId
from tests.command_line import run_command

NAME = RepoId("models", "me", "mnist")


def open_hub(state: ServerState, name: str) -> Hub:
    return Hub(state.url, lambda: state.token, state.data / "cache", name)


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Hub]]:
    constants.HF_HUB_DISABLE_XET = True
    with lease(tmp_path_factory.mktemp("a")) as one, lease(tmp_path_factory.mktemp("b")) as two:
        yield open_hub(one, "one"), open_hub(two, "two")


@pytest.fixture(autouse=True)
def repository(hubs: tuple[Hub, Hub]) -> Iterator[None]:
    """A repository of two tagged steps on the first Hub; the second Hub has none."""
    api = hubs[0].api
    api.create_repo(str(NAME))
    for step in (1, 2):
        add_step(api, step)
    yield
    for hub in hubs:
        for model in hub.api.list_models(author="me"):
            hub.api.delete_repo(model.id)


def add_step(api: HfApi, step: int) -> None:
    files = {"model.safetensors": os.urandom(2000), "config.json": json.dumps(step).encode()}
    changes = [CommitOperationAdd(path, content) for path, content in files.items()]
    api.create_commit(str(NAME), changes, commit_message=f"step {step}")
    api.create_tag(str(NAME), tag=f"step{step}", tag_message="annotated" if step == 1 else None)


def move(source: Hub | Path, target: Hub | Path, work: Path, **options: str) -> TransferResult:
    ends = [MirrorFolder(end) if isinstance(end, Path) else end for end in (source, target)]
    name = RepoId("models", "me", options.get("name", "mnist"))
    transfer = Transfer(NAME, name, options.get("revision"))
    return mirror(*ends, [transfer], work, no_progress)[0]


def contents(hub: Hub, name: str = "me/mnist") -> dict[str, object]:
    """Everything that is to come along: refs, history, and the bytes of every revision."""
    refs = hub.api.list_repo_refs(name)
    tags = {ref.name: ref.target_commit for ref in [*refs.branches, *refs.tags]}
    commits = [(commit.commit_id, commit.title) for commit in hub.api.list_repo_commits(name)]
    files = {
        (tag, path): Path(hub.api.hf_hub_download(name, path, revision=sha)).read_bytes()
        for tag, sha in tags.items()
        for path in hub.api.list_repo_files(name, revision=sha)
    }
    return {"refs": tags, "commits": commits, "files": files}


def test_a_repository_moves_with_everything(hubs: tuple[Hub, Hub], tmp_path: Path) -> None:
    one, two = hubs
    moved = move(one, two, tmp_path / "work")
    assert contents(two) == contents(one)
    assert (len(moved.refs), moved.unchanged, moved.files, moved.bytes) == (3, 0, 2, 4000)
    assert not (tmp_path / "work").exists()
    again = move(one, two, tmp_path / "work")
    assert (again.refs, again.unchanged, again.files) == ((), 3, 0)


def test_a_folder_carries_it(hubs: tuple[Hub, Hub], tmp_path: Path) -> None:
    one, two = hubs
    one.api.update_repo_settings("me/mnist", private=True)
    move(one, tmp_path / "suite", tmp_path / "work")
    add_step(one.api, 3)
    moved = move(one, tmp_path / "suite", tmp_path / "work")
    assert moved.refs == ("refs/heads/main", "refs/tags/step3")
    (tmp_path / "suite").rename(tmp_path / "carried")
    move(tmp_path / "carried", two, tmp_path / "work", name="digits")
    assert contents(two, "me/digits") == contents(one)
    assert two.api.model_info("me/digits").private


def test_only_a_step(hubs: tuple[Hub, Hub], tmp_path: Path) -> None:
    one, two = hubs
    move(one, two, tmp_path / "work", revision="step1")
    refs = two.api.list_repo_refs("me/mnist")
    assert [tag.name for tag in refs.tags] == ["step1"]
    assert refs.tags[0].target_commit == one.api.list_repo_refs("me/mnist").tags[0].target_commit
    with pytest.raises(NotOnHub, match="no branch or tag step7"):
        move(one, two, tmp_path / "work", revision="step7")


def test_what_has_grown_is_added(hubs: tuple[Hub, Hub], tmp_path: Path) -> None:
    one, two = hubs
    move(one, two, tmp_path / "work")
    add_step(one.api, 3)
    moved = move(one, two, tmp_path / "work")
    assert moved.refs == ("refs/heads/main", "refs/tags/step3")
    assert contents(two) == contents(one)


def test_what_differs_is_never_overwritten(hubs: tuple[Hub, Hub], tmp_path: Path) -> None:
    one, two = hubs
    move(one, two, tmp_path / "work")
    two.api.upload_file(path_or_fileobj=b"x", path_in_repo="own.txt", repo_id="me/mnist")
    two.api.delete_tag("me/mnist", tag="step2")
    two.api.create_tag("me/mnist", tag="step2")
    add_step(one.api, 3)
    before = contents(two)
    with pytest.raises(UsageError, match=r"(?s)another main.*another step2"):
        move(one, two, tmp_path / "work")
    assert contents(two) == before


def test_a_folder_that_was_damaged_is_refused(hubs: tuple[Hub, Hub], tmp_path: Path) -> None:
    one, two = hubs
    move(one, tmp_path / "suite", tmp_path / "work")
    files = [path for path in (tmp_path / "suite" / "lfs").rglob("*") if path.is_file()]
    files[0].write_bytes(b"another content")
    files[1].unlink()
    with pytest.raises(IntegrityError, match=r"(?s)missing, or its SHA differs.*SHA differs"):
        move(tmp_path / "suite", two, tmp_path / "work")
    with pytest.raises(NotOnHub, match="has no me/other") as refused:
        mirror(
            MirrorFolder(tmp_path / "suite"), two,
            [Transfer(RepoId("models", "me", "other"), NAME)], tmp_path, no_progress,
        )  # fmt: skip
    assert refused.value.hint == "It has me/mnist."
    assert not [*two.api.list_models(author="me")]


def test_damage_of_any_kind_is_one_sentence(hubs: tuple[Hub, Hub], tmp_path: Path) -> None:
    one, two = hubs
    move(one, tmp_path / "whole", tmp_path / "work")
    git = Path("models/me/mnist.git")
    damages: dict[Path, Callable[[Path], object]] = {
        git.with_suffix(".json"): lambda path: path.write_text("{"),
        git / "objects": _damage_objects,
        git / "objects/pack": shutil.rmtree,
        git / "refs/heads/main": lambda path: path.write_text("0" * 39 + "1"),
    }
    for number, (where, damage) in enumerate(damages.items()):
        suite = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"{number}"))
        damage(suite / where)
        with pytest.raises((IntegrityError, NotOnHub), match="me/mnist"):
            move(suite, two, tmp_path / "work")
    assert not [*two.api.list_models(author="me")]


def _damage_objects(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-9] + bytes(9))


def test_what_a_killed_process_left_does_not_matter(hubs: tuple[Hub, Hub], tmp_path: Path) -> None:
    one, two = hubs
    suite, git = tmp_path / "suite", tmp_path / "suite/models/me/mnist.git"
    git.mkdir(parents=True)  # not whole
    move(one, suite, tmp_path / "work")
    for lock in ("refs/heads/main.lock", "refs/tags/step2.lock"):  # refs come last
        (git / lock).touch()
        (git / lock).with_suffix("").unlink()
    next(path for path in (suite / "lfs").rglob("*") if path.is_file()).unlink()
    assert move(one, suite, tmp_path / "work").refs == ("refs/heads/main", "refs/tags/step2")
    move(suite, two, tmp_path / "work")
    assert contents(two) == contents(one)
    with (suite / "tmp" / "lock").open("wb") as file:
        assert try_lock(file)
        with pytest.raises(Busy, match="Another process"):
            move(suite, two, tmp_path / "work")


def test_the_commands(hubs: tuple[Hub, Hub], running_hub: None, tmp_path: Path) -> None:
    one = hubs[0]
    (tmp_path / "token").write_text(f"{one.token}\n")
    pulled = run_command(
        "hub", "pull", "me/mnist", "--from", one.endpoint, "--token-file", tmp_path / "token",
        "--as", "me/pulled", "--json",
    )  # fmt: skip
    assert pulled.exit_code == 0, pulled.output
    assert json.loads(pulled.stdout)[0]["files"] == 2
    suite = tmp_path / "suite"
    assert run_command("hub", "push", "me/pulled", "--to", suite).exit_code == 0
    move_back = run_command("hub", "pull", "me/pulled@step1", "--from", suite, "--as", "me/other")
    assert move_back.exit_code == 0, move_back.output
    assert str(one.token) not in pulled.output + move_back.output


@pytest.mark.parametrize(("words", "message"), [
    (["pull", "nobody", "--from", "."], "Invalid repository name"),
    (["pull", "a/b", "c/d", "--from", ".", "--as", "e/f"], "--as names one repository"),
    (["pull", "a/b", "--from", "./nothing"], "There is no folder nothing"),
    (["pull", "a/b", "--from", "http://hub.example", "--token-file", "x"], "without encryption"),
    (["push", "a/b", "--to", "http://u:p@host"], "not the address of a Hub"),
    (["push", "a/b", "--to", ".", "--token-file", "x"], "--token-file is for a Hub"),
    (["push", "a/b", "--to", "http://127.0.0.1:9", "--token-file", "x"], "cannot be read"),
    (["push", "me/none", "--to", "suite"], "no such repository"),
])  # fmt: skip
def test_bad_arguments(
    running_hub: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_command("hub", *words)
    assert done.exit_code != 0
    assert not (tmp_path / "nothing").exists()
    assert message in " ".join(done.stderr.split())
