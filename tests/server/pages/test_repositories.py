"""The list of repositories: who sees which, search, kinds and pages."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

from hubmerge.server import ServerState
from hubmerge.server.app import build_app
from hubmerge.server.content import AddFile
from hubmerge.server.names import RepoId
from hubmerge.server.repository import Repository
from hubmerge.server.sessions import request_link
from hubmerge.server.store import RepositoryStore
from tests.command_line import run_command
from tests.server.pages.conftest import BROWSER, Put, step_manifest
from tests.server.pages.html_pages import Page, read_page


@pytest.fixture(scope="module")
def pages_repo(api: HfApi, put: Put) -> str:
    put("searched/needle", {"a.txt": b"x"})
    put("searched/rows", {"a.txt": b"x"}, kind="dataset")
    api.create_repo("searched/hidden", private=True)
    return "searched/needle"


def test_anybody_sees_public_repositories_alone(browser: httpx2.Client, pages_repo: str) -> None:
    page = read_page(browser.get("/", params={"search": "searched/"}).text)
    assert "searched/needle" in page.text
    assert "searched/rows" in page.text
    assert "hidden" not in page.text
    assert page.links()["searched/needle"] == "/searched/needle"
    assert page.links()["searched/rows"] == "/datasets/searched/rows"


@pytest.mark.parametrize(
    ("path", "shown", "not_shown"),
    [
        ("/?search=NEEDLE", "searched/needle", "searched/rows"),
        ("/?kind=datasets&owner=searched", "searched/rows", "searched/needle"),
        ("/datasets", "searched/rows", "searched/needle"),
        ("/searched", "searched/needle", "tiny-clip"),
        ("/?search=no-such-name", "No public repository matches", "searched"),
    ],
)
def test_the_list_is_searched_by_name_kind_and_owner(
    browser: httpx2.Client, pages_repo: str, path: str, shown: str, not_shown: str
) -> None:
    text = read_page(browser.get(path).text).text
    assert shown in text
    assert not_shown not in text


def test_a_search_is_shown_as_it_was_written(browser: httpx2.Client) -> None:
    search = "\"><script>alert('ü')</script>"
    page = read_page(browser.get("/", params={"search": search}).text)
    assert page.all("input", id="search")[0].attributes["value"] == search
    assert not page.all("script")


def test_an_expert_in_the_list_has_its_step_and_its_curve(
    browser: httpx2.Client, expert: str
) -> None:
    page = read_page(browser.get("/?search=pages/expert").text)
    assert "expert, step 8" in page.texts("span", class_="chip strong")
    (curve,) = page.all("svg", class_="spark")
    assert curve.attributes["aria-label"] == (
        "validation accuracy: 50.0 % at step 0, 90.0 % at step 8"
    )


def test_a_link_signs_one_browser_in_to_read(
    browser: httpx2.Client, hub: ServerState, pages_repo: str
) -> None:
    link = request_link(hub)
    assert browser.head(link).status_code == 404  # a look uses nothing up
    with httpx2.Client(base_url=hub.url, headers={"Accept": BROWSER}) as other:
        answer = other.get(link)
        assert answer.status_code == 303
        assert re.search(r"; HttpOnly;.* SameSite=strict", answer.headers["Set-Cookie"])
        assert "hidden" in other.get("/?search=searched").text
        assert other.get("/searched/hidden").status_code == 200
        body = {"name": "hidden", "organization": "searched"}
        refused = other.request("DELETE", "/api/repos/delete", json=body)
        assert refused.status_code == 403
    assert browser.get(link).status_code == 404
    assert "was used before" in browser.get(link).text
    assert browser.get("/searched/hidden").status_code == 404


def test_the_command_prints_such_a_link(hub: ServerState) -> None:
    url = json.loads(run_command("hub", "open", "--data", hub.data, "--json").stdout)["url"]
    with httpx2.Client(headers={"Accept": BROWSER}, follow_redirects=True) as client:
        assert "This browser is signed in" in client.get(url).text


def test_the_command_says_that_no_hub_runs(tmp_path: Path) -> None:
    result = run_command("hub", "open", "--data", tmp_path)
    assert result.exit_code == 75
    assert "hubmerge hub serve" in result.stderr


def test_a_key_is_only_made_for_a_token(browser: httpx2.Client, web: httpx2.Client) -> None:
    assert browser.post("/api/hubmerge/sign-in-key", json={}).status_code == 401
    assert web.post("/api/hubmerge/sign-in-key", json={}).status_code == 200
    cookie = {"Cookie": f"hubmerge-hub-{web.base_url.port}=guessed"}
    assert browser.get("/searched/hidden", headers=cookie).status_code == 404


FILES = [AddFile("hubmerge.json", step_manifest(8).to_bytes()), AddFile("README.md", b"# x")]


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """The paths of all files that are opened in this process."""
    paths, watched = list[str](), [True]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if watched[0] and event == "open":
            paths.append(str(arguments[0]))

    sys.addaudithook(note)
    yield paths
    # A hook stays for as long as the process.
    watched[0] = False


def new_repository(data: Path) -> Repository:
    store = RepositoryStore(data)
    store.clean_up()
    return store.create(RepoId("models", "a", "r0"), FILES, author="a")


def fetch(data: Path, *paths: str) -> list[Page]:
    """Pages of a server in this process."""
    app = build_app(data, None)

    async def fetch_all() -> list[str]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [(await client.get(path, headers={"Accept": BROWSER})).text for path in paths]

    return [read_page(html) for html in asyncio.run(fetch_all())]


def test_a_thousand_repositories_have_pages_and_cost_few_reads(
    tmp_path: Path, opened: list[str]
) -> None:
    folder = new_repository(tmp_path).folder
    for number in range(1, 1000):
        (folder.parent / f"r{number}").symlink_to(folder)
    opened.clear()
    (first,) = fetch(tmp_path, "/")
    # The settings of each repository, and a few files of each that is shown.
    assert len(opened) < 1000 + 50 * 20
    assert len(first.all("p", class_="row-name")) == 50
    assert first.links()["Next"] == "/?page=2"
    last, beyond = fetch(tmp_path, "/?page=20", "/?page=99999")
    assert last.links().keys() == beyond.links().keys()
    assert "a/r999" in last.text


def test_a_thousand_steps_have_pages_and_cost_few_reads(tmp_path: Path, opened: list[str]) -> None:
    repository = new_repository(tmp_path)
    sha = repository.snapshot("main").sha
    for number in range(1, 1001):
        (repository.folder / f"refs/tags/step{number}").write_text(sha)
    opened.clear()
    page, files = fetch(tmp_path, "/a/r0?steps=2", "/a/r0/tree/main")
    assert page.links()["step51"] == "/a/r0/tree/step51"
    assert "step101" not in page.text
    assert (page.links()["Previous"], page.links()["Next"]) == (
        "/a/r0#steps",
        "/a/r0?steps=3#steps",
    )
    # The steps of other pages are names only.
    assert len([path for path in opened if "/objects/" in path]) < 50 * 4
    assert len(files.all("option")) == 200
