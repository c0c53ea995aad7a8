"""Names: moved repositories, names in another case, and what this Hub does not have."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hubmerge.server.names import RepoId
from hubmerge.server.redirects import Redirects

OLD, NEW, NEWER = (RepoId("models", "me", name) for name in ("old", "new", "newer"))


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_an_old_name_leads_to_the_repository(
    api: HfApi, web: httpx2.Client, kind: str, tmp_path: Path
) -> None:
    old, new, newest = (f"movers/{kind}-{name}" for name in ("old", "new", "newest"))
    api.create_repo(old, repo_type=kind)
    for source, target in ((old, new), (new, newest)):
        api.move_repo(source, target, repo_type=kind)
    for name in (old, new):
        assert api.repo_info(name, repo_type=kind).id == newest
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "w.bin").write_bytes(name.encode())
        # Requests with bodies, by LFS, and the headers of a download all follow.
        commit = api.upload_folder(repo_id=name, folder_path=tmp_path / name, repo_type=kind)
        local = api.hf_hub_download(name, "w.bin", repo_type=kind, cache_dir=tmp_path / "cache")
        assert Path(local).read_bytes() == name.encode()
        assert api.repo_info(newest, repo_type=kind).sha == commit.oid
    api.create_repo("movers/other", repo_type=kind, exist_ok=True)
    with pytest.raises(HfHubHTTPError, match=f"A {kind} repository called {newest} already"):
        api.move_repo("movers/other", newest, repo_type=kind)
    api.create_repo(old, repo_type=kind)
    assert api.repo_info(old, repo_type=kind).id == old
    prefix = "" if kind == "model" else "datasets/"
    answer = web.get(f"/{prefix}{new}/resolve/main/a%20b?x=1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (
        307, f"/{prefix}{newest}/resolve/main/a%20b?x=1",
    )  # fmt: skip


def test_a_redirect_is_forgotten_with_its_repository(api: HfApi, web: httpx2.Client) -> None:
    api.create_repo("movers/gone", private=True)
    api.move_repo("movers/gone", "movers/away")
    headers = {"Authorization": ""}
    hidden = web.get("/api/models/movers/gone", headers=headers, follow_redirects=False)
    assert (hidden.status_code, hidden.headers["x-error-code"]) == (401, "RepoNotFound")
    api.delete_repo("movers/away")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("movers/gone")


def test_names_that_differ_in_case_are_one(api: HfApi, web: httpx2.Client) -> None:
    api.create_repo("Cases/Model")
    assert api.model_info("cases/MODEL").id == "Cases/Model"
    assert api.create_repo("cases/model", exist_ok=True).repo_id == "Cases/Model"
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("cases/model")
    answer = web.get("/api/models/cases/model/revision/main", follow_redirects=False)
    assert answer.headers["location"] == "/api/models/Cases/Model/revision/main"
    assert [model.id for model in api.list_models(author="cases")] == ["Cases/Model"]
    api.move_repo("Cases/Model", "Cases/model")
    assert api.model_info("Cases/Model").id == "Cases/model"


def test_chains_of_redirects_are_short_and_never_circles(tmp_path: Path) -> None:
    redirects = Redirects(tmp_path)
    redirects.add(OLD, NEW)
    redirects.add(NEW, NEWER)
    assert redirects.find(OLD) == redirects.find(NEW) == NEWER
    redirects.add(NEWER, OLD)
    assert redirects.find(OLD) is None
    assert redirects.find(NEW) == redirects.find(NEWER) == OLD
    redirects.remove(NEW)
    assert redirects.find(NEW) is None
    assert redirects.find(RepoId("datasets", "me", "newer")) is None


def test_a_tag_does_not_have_the_name_of_a_branch(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError, match="refs/heads/main already exists"):
        api.create_tag(repo, tag="main")
    api.create_tag(repo, tag="step1")
    api.create_branch(repo, branch="step1")  # as on the public Hub


def test_what_is_not_built_is_called_so(api: HfApi, web: httpx2.Client, repo: str) -> None:
    with pytest.raises(HfHubHTTPError, match=r"This Hub has no /api/models/.*/like") as error:
        api.unlike("tests/x")
    assert not isinstance(error.value, RepositoryNotFoundError)
    for path in (f"/api/models/{repo}/duplicate", "/api/settings/webhooks", "/api/daily_papers"):
        answer = web.get(path)
        assert (answer.status_code, "X-Error-Code" in answer.headers) == (501, False)
    answer = web.delete(f"/api/models/{repo}")
    assert (answer.status_code, "has no DELETE of" in answer.text) == (501, True)
    with pytest.raises(RepositoryNotFoundError):
        api.unlike("gpt2")
    for path in ("/api/models/gpt2", "/api/models/gpt2/revision/main", "/gpt2/x/y/z"):
        assert web.get(path).headers["X-Error-Code"] == "RepoNotFound", path


def test_every_response_has_an_id(web: httpx2.Client, repo: str) -> None:
    seen = set()
    for path, host in (("/api/models", ""), ("/api/nothing", ""), ("/api/models", "evil.example")):
        answer = web.get(path, headers={"Host": host} if host else {})
        seen.add(answer.headers["x-request-id"])
    assert len(seen) == 3
    mine = web.get("/api/models", headers={"X-Request-Id": "mine-1"})
    assert mine.headers.get_list("x-request-id") == ["mine-1"]
    forged = web.get("/api/models", headers={"X-Request-Id": "a b"})
    assert forged.headers["x-request-id"] != "a b"
