"""Repositories: create, delete, describe, list, and who may see them."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from hubmerge.server import ServerState
from hubmerge.server.tokens import Tokens

CARD = b"---\nlicense: mit\nbase_model: me/base\nbase_model_relation: merge\n---\n# hello\n"


def test_a_repository_is_created_once(api: HfApi, repo: str) -> None:
    assert api.repo_exists(repo)
    assert api.create_repo(repo, exist_ok=True).repo_id == repo
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo(repo)
    assert refused.value.response.status_code == 409
    assert refused.value.response.json()["url"] == f"{api.endpoint}/{repo}"


def test_a_name_without_owner_belongs_to_the_user(api: HfApi) -> None:
    assert api.create_repo("mine").repo_id == f"{api.whoami()['name']}/mine"


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_each_kind_has_its_own_names(api: HfApi, kind: str) -> None:
    sdk = "static" if kind == "space" else None
    url = api.create_repo("kinds/same", repo_type=kind, space_sdk=sdk)
    assert (url.repo_id, url.repo_type) == ("kinds/same", kind)
    assert api.repo_info("kinds/same", repo_type=kind).id == "kinds/same"
    files = [".gitattributes", "README.md"] if kind == "space" else [".gitattributes"]
    assert api.list_repo_files("kinds/same", repo_type=kind) == files


def test_a_space_has_a_card_from_its_beginning(api: HfApi, web: httpx2.Client) -> None:
    api.create_repo("tests/a-space", repo_type="space", space_sdk="gradio")
    card = api.space_info("tests/a-space").card_data
    assert card is not None
    assert card.to_dict()["sdk"] == "gradio"
    body = {"name": "b-space", "organization": "tests", "type": "space", "sdk": "gradio\nx: 1"}
    answer = web.post("/api/repos/create", json=body)
    assert (answer.status_code, "must be one of static" in answer.text) == (400, True)


def test_the_name_of_a_deleted_repository_is_free(api: HfApi, repo: str) -> None:
    api.delete_repo(repo)
    assert not api.repo_exists(repo)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(repo)
    api.create_repo(repo)


def test_info_has_the_card_and_the_files(api: HfApi, repo: str) -> None:
    api.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id=repo)
    commit = api.upload_file(
        path_or_fileobj=b"w" * 1000, path_in_repo="a/model.safetensors", repo_id=repo
    )
    info = api.model_info(repo, files_metadata=True)
    assert info.sha == commit.oid
    assert info.author == "tests"
    assert not info.private
    assert info.card_data is not None
    assert info.card_data["license"] == "mit"
    assert info.tags == ["license:mit", "base_model:me/base", "base_model:merge:me/base"]
    sizes = {s.rfilename: (s.size, s.lfs is not None) for s in info.siblings or []}
    assert sizes["a/model.safetensors"] == (1000, True)
    assert sizes["README.md"] == (len(CARD), False)
    assert info.last_modified
    assert info.created_at
    assert info.last_modified >= info.created_at


def test_info_of_an_old_revision(api: HfApi, repo: str) -> None:
    old = api.model_info(repo).sha
    api.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id=repo)
    info = api.model_info(repo, revision=old)
    assert info.sha == old
    assert [s.rfilename for s in info.siblings or []] == [".gitattributes"]


def test_expand_returns_only_the_requested_properties(
    api: HfApi, web: httpx2.Client, repo: str
) -> None:
    info = api.model_info(repo, expand=["sha", "tags", "evalResults"])
    assert info.sha
    assert info.tags == []
    assert info.siblings is None
    answer = web.get(f"/api/models/{repo}", params={"expand": "nonsense"})
    assert answer.status_code == 400
    assert "nonsense" in answer.json()["error"]


def test_models_are_listed_by_author_search_and_tag(api: HfApi) -> None:
    for name in ("alpha", "beta", "gamma"):
        api.create_repo(f"lister/{name}")
    api.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id="lister/beta")
    assert {m.id for m in api.list_models(author="lister")} == {
        "lister/alpha",
        "lister/beta",
        "lister/gamma",
    }
    assert [m.id for m in api.list_models(search="LISTER/gam")] == ["lister/gamma"]
    assert [m.id for m in api.list_models(filter="license:mit", author="lister")] == ["lister/beta"]
    assert [m.id for m in api.list_models(author="nobody")] == []
    assert [m.id for m in api.list_models(sort="last_modified")][-1] == "hubmerge/tiny-clip"


@pytest.mark.parametrize(
    ("front_matter", "file", "relation"),
    [
        ("base_model: me/relatives", "config.json", "finetune"),
        ("base_model: [me/relatives]", "adapter_config.json", "adapter"),
        ("base_model: [me/relatives, me/other]", "config.json", "merge"),
        ("base_model: me/relatives\nbase_model_relation: quantized", "config.json", "quantized"),
    ],
)
def test_the_relation_to_a_base_comes_from_card_or_files(
    api: HfApi, repo: str, front_matter: str, file: str, relation: str
) -> None:
    card = f"---\n{front_matter}\n---\n".encode()
    for path, content in (("README.md", card), (file, b"{}")):
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo)
    assert f"base_model:{relation}:me/relatives" in (api.model_info(repo).tags or [])
    for tag in ("base_model:me/relatives", f"base_model:{relation}:me/relatives"):
        assert repo in {model.id for model in api.list_models(filter=tag)}


def test_the_list_has_pages(web: httpx2.Client, api: HfApi) -> None:
    for number in range(5):
        api.create_repo(f"pager/{number}", repo_type="dataset")
    url, ids = "/api/datasets?author=pager&limit=2", []
    while url:
        page = web.get(url)
        ids += [item["id"] for item in page.json()]
        assert len(page.json()) <= 2
        url = page.links.get("next", {}).get("url", "")
    assert sorted(ids) == [f"pager/{number}" for number in range(5)]


def test_the_seed_is_visible(anonymous: HfApi) -> None:
    assert anonymous.model_info("hubmerge/tiny-clip").pipeline_tag


def test_whoami_returns_the_user_and_role(api: HfApi, reader: HfApi, hub: ServerState) -> None:
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert reader.whoami()["name"] == "reader"
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(endpoint=hub.url, token="hf_bad").whoami()
    assert refused.value.response.status_code == 401


def test_a_private_repository_is_hidden_from_the_anonymous(
    api: HfApi, reader: HfApi, anonymous: HfApi, web: httpx2.Client
) -> None:
    api.create_repo("private/one", private=True)
    assert reader.model_info("private/one").private
    for missing in ("private/one", "private/none"):
        with pytest.raises(RepositoryNotFoundError) as hidden:
            anonymous.model_info(missing)
        assert hidden.value.response.status_code == 401
        with pytest.raises(RepositoryNotFoundError):
            anonymous.hf_hub_download(missing, ".gitattributes")
    with pytest.raises(RepositoryNotFoundError) as not_found:
        reader.model_info("private/none")
    assert not_found.value.response.status_code == 404
    assert [m.id for m in anonymous.list_models(author="private")] == []
    assert [m.id for m in reader.list_models(author="private")] == ["private/one"]


def test_settings_change_who_may_see(api: HfApi, anonymous: HfApi, repo: str) -> None:
    api.update_repo_settings(repo, private=True)
    assert not anonymous.repo_exists(repo)
    api.update_repo_settings(repo, private=False, gated="manual")
    assert anonymous.model_info(repo).gated == "manual"
    with pytest.raises(GatedRepoError):
        anonymous.list_repo_files(repo, revision="main") and list(anonymous.list_repo_tree(repo))
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_the_anonymous_may_not_write(anonymous: HfApi, web: httpx2.Client, repo: str) -> None:
    headers = {"Authorization": ""}
    for method, path in WRITES:
        answer = web.request(method, path.format(repo), json={}, headers=headers)
        assert answer.status_code == 401, path
        assert answer.headers["X-Error-Code"] == "RepoNotFound", path


def test_a_read_token_may_not_write(reader: HfApi, web: httpx2.Client, repo: str) -> None:
    headers = {"Authorization": f"Bearer {reader.token}"}
    for method, path in WRITES:
        assert web.request(method, path.format(repo), json={}, headers=headers).status_code == 403


def test_a_bad_token_differs_from_a_missing_repository(web: httpx2.Client, repo: str) -> None:
    for path in (f"/api/models/{repo}", "/api/whoami-v2", f"/{repo}/resolve/main/x"):
        answer = web.get(path, headers={"Authorization": "Bearer hf_bad"})
        assert answer.status_code == 401
        assert "X-Error-Code" not in answer.headers
        message = "Invalid credentials in Authorization header"
        assert answer.json()["error"] == answer.headers["X-Error-Message"] == message


def test_a_foreign_host_name_is_not_served(web: httpx2.Client) -> None:
    assert web.get("/api/models", headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("path", ["/api/telemetry/x/y", "/v1/telemetry", "/api/agent-harnesses"])
def test_telemetry_is_answered(web: httpx2.Client, path: str) -> None:
    assert web.get(path).json() == {}


def test_front_matter_is_validated(web: httpx2.Client) -> None:
    good = web.post("/api/validate-yaml", json={"content": CARD.decode(), "repoType": "model"})
    assert good.status_code == 200
    assert good.json() == {"errors": [], "warnings": []}
    bad = web.post("/api/validate-yaml", json={"content": "---\na: [\n---\n"})
    assert bad.status_code == 400
    assert bad.json()["errors"][0]["message"]
    wrong = {"content": "---\nlicense: asdf\n---\n"}
    text = web.post("/api/validate-yaml", json=wrong, headers={"Accept": "text/plain"}).text
    assert text.startswith('- Error: "license" must be one of')


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_not_a_json_object_is_refused(web: httpx2.Client, body: bytes) -> None:
    assert web.post("/api/repos/create", content=body).status_code == 400


def test_a_lone_surrogate_is_refused(web: httpx2.Client, repo: str) -> None:
    body = b'{"tag": "a", "message": "\\ud800", "files": [{"path": "\\ud800"}]}'
    for path in ("tag/main", "preupload/main"):
        answer = web.post(f"/api/models/{repo}/{path}", content=body)
        assert answer.status_code == 400
        assert "Unicode" in answer.json()["error"]
    assert web.get(f"/api/models/{repo}/refs").json()["tags"] == []


WRITES = [
    ("POST", "/api/repos/create"),
    ("DELETE", "/api/repos/delete"),
    ("PUT", "/api/models/{}/settings"),
    ("POST", "/api/models/{}/tag/main"),
    ("DELETE", "/api/models/{}/tag/t"),
    ("POST", "/api/models/{}/branch/b"),
    ("DELETE", "/api/models/{}/branch/b"),
    ("POST", "/api/models/{}/preupload/main"),
    ("POST", "/api/models/{}/commit/main"),
    ("POST", "/{}.git/info/lfs/objects/batch"),
    ("POST", "/{}.git/info/lfs/objects/verify"),
    ("GET", "/api/models/{}/auth-check/write"),
]


def test_a_user_lists_their_repositories_with_their_size(hub: ServerState) -> None:
    name = "storekeeper"
    api = HfApi(endpoint=hub.url, token=Tokens(hub.data).create(name, "write"))
    api.create_repo(f"{name}/large", private=True)
    api.upload_file(
        path_or_fileobj=b"x" * 3000, path_in_repo="a.safetensors", repo_id=f"{name}/large"
    )
    api.create_repo(f"{name}/rows", repo_type="dataset")
    large, rows = api.list_user_repos()
    assert (large.id, large.type, large.visibility) == (f"{name}/large", "model", "private")
    assert (rows.id, rows.type, rows.visibility) == (f"{name}/rows", "dataset", "public")
    assert large.storage >= 3000 > rows.storage
    with pytest.raises(HfHubHTTPError):
        list(HfApi(endpoint=hub.url, token=False).list_user_repos())
