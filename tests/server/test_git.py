"""`git clone` and `git push`, by git itself: same commits, and nothing that would break the Hub."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, RepoFile

from hubmerge.server import ServerState

_ENVIRONMENT = {
    **os.environ,
    **{
        f"GIT_{who}_{what}": "a@example"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_LFS_SKIP_SMUDGE": "1",
}


def git(folder: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, env=_ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def url_of(hub: ServerState, repo: str, token: str | None = None) -> str:
    return f"{hub.url}/{repo}".replace("http://", f"http://user:{token or hub.token}@")


@pytest.fixture
def clone(hub: ServerState, repo: str, tmp_path: Path) -> Path:
    git(tmp_path, "clone", "-q", url_of(hub, repo), "clone")
    return tmp_path / "clone"


def test_a_clone_has_the_commits_and_tags(
    api: HfApi, hub: ServerState, repo: str, tmp_path: Path
) -> None:
    for step in ("step1", "step2"):
        api.upload_file(path_or_fileobj=step.encode(), path_in_repo="a.txt", repo_id=repo)
        api.create_tag(repo, tag=step, tag_message="m" if step == "step1" else None)
    for name in (repo, f"{repo}.git"):
        git(tmp_path, "clone", "-q", f"{hub.url}/{name}", f"{len(name)}")
        folder = tmp_path / f"{len(name)}"
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
        assert {tag: git(folder, "rev-parse", f"{tag}^{{}}").strip() for tag in tags} == tags
        assert git(folder, "show", "step1:a.txt") == "step1"
        assert git(folder, "fsck", "--strict").strip() == ""


def test_what_is_pushed_is_served(api: HfApi, hub: ServerState, repo: str, clone: Path) -> None:
    (clone / "config.json").write_text("{}")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "mine")
    git(clone, "tag", "-a", "step4", "-m", "annotated")
    git(clone, "push", "-q", "origin", "HEAD:main", "HEAD:refs/heads/side", "step4")
    sha = git(clone, "rev-parse", "HEAD").strip()
    refs = api.list_repo_refs(repo)
    assert {ref.name: ref.target_commit for ref in [*refs.branches, *refs.tags]} == {
        "main": sha, "side": sha, "step4": sha,
    }  # fmt: skip
    assert "config.json" in api.list_repo_files(repo, revision="step4")
    git(clone, "push", "-q", "origin", ":side")
    assert [ref.name for ref in api.list_repo_refs(repo).branches] == ["main"]
    # A commit by the API on top of a pushed one.
    api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=repo)
    git(clone, "pull", "-q")
    assert (clone / "b.txt").read_text() == "b"


def test_a_push_without_its_large_files_is_refused(
    hub: ServerState, api: HfApi, repo: str, clone: Path
) -> None:
    oid = "ab" * 32
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 3\n"
    (clone / "a.txt").write_text(pointer)
    before = api.model_info(repo).sha
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "no content")
    text = git(clone, "push", "origin", "HEAD:main", "HEAD~1:refs/heads/fine", code=1)
    assert f"the large file {oid} was not uploaded" in text
    assert api.model_info(repo).sha == before
    assert "fine" in [ref.name for ref in api.list_repo_refs(repo).branches]


@pytest.mark.parametrize(("card", "problem"), [
    ("license: my-own", '"license" must be one of'),
    ("language: false", '"language" must not be'),
    ("model-index: {}", '"model-index" must be a list'),
    ("license: [mit", "Invalid metadata in README.md"),
])  # fmt: skip
def test_a_push_is_held_to_the_rules_of_cards(
    api: HfApi, repo: str, clone: Path, card: str, problem: str
) -> None:
    (clone / "README.md").write_text(f"---\n{card}\n---\n")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "card")
    git(clone, "tag", "-a", "step4", "-m", "annotated")
    before = api.list_repo_refs(repo)
    text = git(clone, "push", "origin", "HEAD:main", "HEAD:refs/heads/side", "step4", code=1)
    assert problem in text
    assert text.count("remote rejected") == 3
    assert api.list_repo_refs(repo) == before
    (clone / "README.md").write_text("---\nlicense: mit\n---\n")
    git(clone, "commit", "-q", "-a", "-m", "mended")
    git(clone, "push", "-q", "origin", "HEAD:main")
    # A mirror brings what is published elsewhere, whatever its card.
    git(clone, "-c", "http.extraHeader=Hubmerge-Mirror: 1", "push", "-q", "origin", "step4")
    assert [tag.name for tag in api.list_repo_refs(repo).tags] == ["step4"]


@pytest.mark.parametrize(("ref", "problem"), [
    (":main", "the main branch cannot be deleted"),
    ("HEAD:refs/pr/1", "only branches and tags"),
    ("HEAD:refs/heads/-x", ""),
    ("HEAD^{tree}:refs/tags/t", "it is no commit"),
])  # fmt: skip
def test_refs_that_nobody_may_push(clone: Path, ref: str, problem: str) -> None:
    assert problem in git(clone, "push", "origin", ref, code=1)


def test_a_branch_that_has_moved_is_not_overwritten(api: HfApi, repo: str, clone: Path) -> None:
    api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=repo)
    git(clone, "commit", "-q", "--allow-empty", "-m", "mine")
    assert "rejected" in git(clone, "push", "origin", "HEAD:main", code=1)


def test_who_may_read_and_push(
    hub: ServerState, api: HfApi, reader: HfApi, repo: str, clone: Path, tmp_path: Path
) -> None:
    api.update_repo_settings(repo, private=True)
    assert "could not read Username" in git(tmp_path, "clone", f"{hub.url}/{repo}", "x", code=128)
    wrong = url_of(hub, repo, "hf_wrong")
    assert "Authentication failed" in git(tmp_path, "clone", wrong, "x", code=128)
    git(clone, "commit", "-q", "--allow-empty", "-m", "mine")
    reading = url_of(hub, repo, str(reader.token))
    assert "403" in git(clone, "push", reading, "HEAD:main", code=128)


@pytest.mark.parametrize("body", [b"", b"nonsense", b"00zz", b"0000", b"ffff" + b"x" * 100])
def test_what_is_not_the_protocol_is_refused(web: httpx2.Client, repo: str, body: bytes) -> None:
    for service in ("git-upload-pack", "git-receive-pack"):
        headers = {"Content-Type": f"application/x-{service}-request"}
        answer = web.post(f"/{repo}.git/{service}", content=body, headers=headers)
        assert answer.status_code in (200, 400)
        assert web.post(f"/{repo}.git/{service}", content=body).status_code == 400
        zipped = {**headers, "Content-Encoding": "gzip"}
        assert web.post(f"/{repo}/{service}", content=b"x", headers=zipped).status_code == 400
    assert web.get(f"/{repo}/info/refs").status_code == 400


def test_large_files_are_downloaded_by_lfs(web: httpx2.Client, api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"12345", path_in_repo="a.safetensors", repo_id=repo)
    file = api.get_paths_info(repo, "a.safetensors")[0]
    objects = [{"oid": file.lfs.sha256, "size": 5}, {"oid": "0" * 64, "size": 1}]  # type: ignore[union-attr]
    answer = web.post(
        f"/{repo}.git/info/lfs/objects/batch", json={"operation": "download", "objects": objects}
    ).json()["objects"]
    href = answer[0]["actions"]["download"]["href"]
    assert httpx2.get(href).content == b"12345"
    assert answer[1]["error"]["code"] == 404
    assert httpx2.get(href.partition("?")[0]).status_code == 403


@pytest.mark.skipif(not shutil.which("git-lfs"), reason="git-lfs is not installed")
def test_git_lfs_pushes_to_a_private_repository_and_clones_it(
    hub: ServerState, api: HfApi, repo: str, clone: Path, tmp_path: Path
) -> None:
    api.update_repo_settings(repo, private=True)
    content = os.urandom(4096)
    git(clone, "lfs", "install", "--local")
    (clone / "w.bin").write_bytes(content)
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "weights")
    git(clone, "push", "-q", "origin", "HEAD:main")
    (file,) = api.get_paths_info(repo, "w.bin")
    assert isinstance(file, RepoFile)
    assert file.lfs
    assert file.lfs.sha256 == hashlib.sha256(content).hexdigest()
    git(tmp_path, "clone", "-q", url_of(hub, repo), "again")
    git(tmp_path / "again", "lfs", "install", "--local")
    git(tmp_path / "again", "lfs", "pull")
    assert (tmp_path / "again/w.bin").read_bytes() == content


def test_an_url_to_upload_a_content_does_not_download_it(
    web: httpx2.Client, api: HfApi, repo: str
) -> None:
    content = os.urandom(8)
    objects = [{"oid": hashlib.sha256(content).hexdigest(), "size": 8}]
    path = f"/{repo}.git/info/lfs/objects/batch"
    answer = web.post(path, json={"operation": "upload", "objects": objects}).json()["objects"]
    href = answer[0]["actions"]["upload"]["href"]
    assert httpx2.put(href, content=content).status_code == 200
    assert httpx2.get(href).status_code == 403
