"""Refs that are packed: as many as there are, they read and change like files."""

from __future__ import annotations

from pathlib import Path

import pytest
from dulwich.repo import Repo

from hubmerge.server import refs
from hubmerge.server.content import AddFile
from hubmerge.server.http_errors import Conflict, RevisionMissing
from hubmerge.server.names import RepoId
from hubmerge.server.repository import BRANCH, TAG, Repository
from hubmerge.server.store import RepositoryStore


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(refs, "MAX_LOOSE", 4)
    store = RepositoryStore(tmp_path)
    store.clean_up()
    return store.create(RepoId("models", "me", "m"), author="me")


def commit(repository: Repository, text: str) -> str:
    return repository.commit("main", [AddFile("a", text.encode())], "m", author="me")


def loose(repository: Repository) -> set[str]:
    files = (repository.folder / "refs").rglob("*")
    return {str(file.relative_to(repository.folder)) for file in files if file.is_file()}


def test_tags_and_branches_read_the_same_when_they_are_packed(repository: Repository) -> None:
    expected = {}
    for number in range(11):
        sha = commit(repository, str(number))
        message = "with a tag object" if number % 2 else ""
        repository.create_ref(TAG, f"run/step{number}", sha, message, "me")
        expected[f"run/step{number}"] = sha
    repository.create_ref(BRANCH, "side", "run/step3")
    assert len(loose(repository)) <= 5
    assert "refs/heads/main" in loose(repository)
    assert repository.refs(TAG) == dict(sorted(expected.items()))
    for name, sha in expected.items():
        assert repository.snapshot(name).sha == repository.snapshot(TAG + name).sha == sha
    with Repo(str(repository.folder)) as git:  # as git itself reads them
        assert {name.decode() for name in git.refs.keys(b"refs/tags/")} == expected.keys()
        assert git.get_peeled(b"refs/tags/run/step1").decode() == expected["run/step1"]


def test_packed_refs_move_are_deleted_and_never_collide(repository: Repository) -> None:
    first = commit(repository, "1")
    for number in range(6):
        repository.create_ref(BRANCH, f"b{number}", first)
        repository.create_ref(TAG, f"a/step{number}", first, "m" if number % 2 else "", "me")
    assert "refs/tags/a/step0" not in loose(repository)
    with pytest.raises(Conflict, match="already exists"):
        repository.create_ref(TAG, "a/step0", "main")
    for name in ("a", "a/step0/x"):
        with pytest.raises(Conflict, match="collides"):
            repository.create_ref(TAG, name, "main")
    with pytest.raises(Conflict, match="refs/heads/b0 already exists"):
        repository.create_ref(TAG, "b0", "main")
    second = repository.commit("b0", [AddFile("b", b"2")], "m", author="me")
    assert repository.refs(BRANCH)["b0"] == second
    assert repository.snapshot("b1").sha == first
    for number in range(6):
        repository.delete_ref(TAG, f"a/step{number}")
    assert repository.refs(TAG) == {}
    with pytest.raises(RevisionMissing):
        repository.snapshot("a/step1")
    repository.create_ref(TAG, "a", "main")  # the folder is gone
    assert repository.refs(TAG) == {"a": first}


def test_packed_refs_are_read_once(repository: Repository) -> None:
    for number in range(6):
        repository.create_ref(TAG, f"step{number}", "main")
    before = refs._read_packed.cache_info().misses
    for _ in range(5):
        repository.refs(TAG)
        repository.snapshot("step0")
    assert refs._read_packed.cache_info().misses <= before + 1
