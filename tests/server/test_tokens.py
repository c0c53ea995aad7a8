"""Users: what they hide from each other, and the folder that hides it from other accounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from hubmerge.errors import HubmergeError
from hubmerge.server import ServerState
from hubmerge.server.data_folder import open_data_folder
from hubmerge.server.tokens import Tokens, User


@pytest.fixture(scope="module")
def ada(hub: ServerState) -> HfApi:
    return HfApi(endpoint=hub.url, token=Tokens(hub.data).create("ada", "write"))


@pytest.fixture(scope="module")
def bob(hub: ServerState) -> HfApi:
    return HfApi(endpoint=hub.url, token=Tokens(hub.data).create("bob", "write"))


def test_a_private_repository_is_hidden_from_other_users(
    ada: HfApi, bob: HfApi, api: HfApi, anonymous: HfApi, hub: ServerState
) -> None:
    ada.create_repo("secret", private=True)
    ada.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="ada/secret")
    for client, status in ((bob, 404), (anonymous, 401)):
        for call in (
            lambda client=client: client.model_info("ada/secret"),
            lambda client=client: client.model_info("Ada/SECRET"),
            lambda client=client: client.hf_hub_download("ada/secret", "x"),
            lambda client=client: client.list_repo_refs("ada/secret"),
        ):
            with pytest.raises(RepositoryNotFoundError) as hidden:
                call()
            assert hidden.value.response.status_code == status
        assert list(client.list_models(author="ada")) == []
    for call in (
        lambda: bob.delete_repo("ada/secret"),
        lambda: bob.move_repo("ada/secret", "bob/mine"),
        lambda: bob.upload_file(path_or_fileobj=b"y", path_in_repo="x", repo_id="ada/secret"),
    ):
        with pytest.raises(RepositoryNotFoundError):
            call()
    assert [model.id for model in ada.list_models(author="ada")] == ["ada/secret"]
    assert api.model_info("ada/secret").private
    assert Tokens(hub.data).revoke("ada") == 1
    assert list(bob.list_models(author="ada")) == []
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        ada.whoami()


def test_users_write_to_their_own_and_to_those_of_teams(bob: HfApi, api: HfApi) -> None:
    api.create_repo("local/public", exist_ok=True)
    assert bob.model_info("local/public").id == "local/public"
    for call in (
        lambda: bob.upload_file(path_or_fileobj=b"y", path_in_repo="x", repo_id="local/public"),
        lambda: bob.create_repo("LOCAL/other"),
        lambda: bob.create_tag("local/public", tag="t"),
        lambda: bob.delete_repo("local/public"),
        lambda: bob.move_repo("local/public", "bob/public"),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert refused.value.response.status_code == 403
        assert "belongs to the user" in str(refused.value)
    bob.create_repo("team-of-all/model", private=True)
    api.upload_file(path_or_fileobj=b"y", path_in_repo="x", repo_id="team-of-all/model")
    assert "team-of-all" in {org["name"] for org in bob.whoami()["orgs"]}
    assert "local" not in {org["name"] for org in bob.whoami()["orgs"]}


def test_the_files_of_a_gated_repository_are_its_owners(bob: HfApi, hub: ServerState) -> None:
    bob.create_repo("gated")
    bob.update_repo_settings("bob/gated", gated="auto")
    assert bob.list_repo_files("bob/gated") == [".gitattributes"]
    bob.auth_check("bob/gated")
    other = HfApi(endpoint=hub.url, token=Tokens(hub.data).create("eve", "read"))
    assert other.model_info("bob/gated").gated == "auto"
    for call in (
        lambda: list(other.list_repo_tree("bob/gated")),
        lambda: other.auth_check("bob/gated"),
        lambda: other.hf_hub_download("bob/gated", ".gitattributes"),
    ):
        with pytest.raises(GatedRepoError):
            call()


def test_who_sees_a_repository_may_propose_changes(bob: HfApi, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("local/proposed-to", exist_ok=True)
    (tmp_path / "w.bin").write_bytes(b"proposed")
    add = CommitOperationAdd("w.bin", tmp_path / "w.bin")
    opened = bob.create_commit("local/proposed-to", [add], commit_message="new", create_pr=True)
    assert opened.pr_num == 1
    to_one, to_other = (CommitOperationAdd("a.txt", b"a") for _ in range(2))
    bob.create_commit("local/proposed-to", [to_one], commit_message="more", revision="refs/pr/1")
    bob.comment_discussion("local/proposed-to", 1, "Please look")
    bob.rename_discussion("local/proposed-to", 1, "Better weights")
    theirs = api.create_discussion("local/proposed-to", "Plans", pull_request=True)
    for call in (
        lambda: bob.merge_pull_request("local/proposed-to", 1),
        lambda: bob.rename_discussion("local/proposed-to", theirs.num, "Mine"),
        lambda: bob.create_commit(
            "local/proposed-to", [to_other], commit_message="x", revision=f"refs/pr/{theirs.num}"
        ),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert refused.value.response.status_code == 403
    api.merge_pull_request("local/proposed-to", 1)
    assert bob.list_repo_files("local/proposed-to") == [".gitattributes", "a.txt", "w.bin"]


def test_the_token_of_the_commands_stays(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path)
    tokens.ensure_writer("local")
    kept = (tmp_path / "token").read_text()
    other = tokens.create("local", "write")
    assert tokens.revoke("local") == 1
    assert (tokens.user(kept), tokens.user(other)) == (User("local", "write"), None)
    assert tokens.revoke("nobody") == 0
    assert not tokens.is_member(User("bob", "write"), "Local")


def test_the_data_folder_is_closed_to_others(tmp_path: Path) -> None:
    for folder, entry in (("new", None), ("empty", None), ("used", "repos")):
        path = tmp_path / folder
        if folder != "new":
            path.mkdir(mode=0o755)
            path.chmod(0o755)
        if entry:
            (path / entry).mkdir()
        assert open_data_folder(path) == path
        assert path.stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "notes.txt").touch()
    with pytest.raises(HubmergeError, match="holds other files"):
        open_data_folder(shared)
    assert shared.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(HubmergeError, match="belongs to another user"):
        open_data_folder(tmp_path)
