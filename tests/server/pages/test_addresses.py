"""Who gets a page at which address, and how; clients keep their answers."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

import hubmerge
from tests.server.pages.conftest import Put
from tests.server.pages.html_pages import accessibility_problems, dangers_of, read_page

ALL_PAGES = (
    "/", "/?search=expert", "/?search=nothing-at-all", "/?kind=spaces", "/settings/tokens",
    "/pages/expert", "/pages/expert?compare=step1..step8", "/pages/expert/tree/main",
    "/pages/expert/tree/step4", "/pages/expert/blob/main/README.md",
    "/pages/expert/blob/main/config.json", "/pages/expert/blob/main/curve.png",
    "/pages/expert/commits/main", "/pages/expert/commit/main", "/pages/expert/discussions",
    "/pages/expert/discussions/1", "/hubmerge/tiny-clip",
    "/hubmerge/tiny-clip/blob/main/open_clip_model.safetensors", "/no/such",
    "/pages/expert/tree/no",
)  # fmt: skip
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


@pytest.fixture(scope="module", autouse=True)
def pull_request(api: HfApi, expert: str) -> None:
    api.upload_file(
        path_or_fileobj=b"<b>x</b>", path_in_repo="x.txt", repo_id=expert,
        commit_message="Add <b>x</b>", create_pr=True,
    )  # fmt: skip


@pytest.mark.parametrize("path", ALL_PAGES)
def test_every_page_is_safe_and_accessible(browser: httpx2.Client, path: str) -> None:
    answer = browser.get(path)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert list(dangers_of(answer.text)) == []
    assert list(accessibility_problems(answer.text)) == []
    head = browser.head(path)
    assert (head.status_code, head.content) == (answer.status_code, b"")


def test_every_address_that_clients_print_has_a_page(
    browser: httpx2.Client, api: HfApi, put: Put
) -> None:
    url = api.create_repo("pages/printed")
    commit = api.upload_file(path_or_fileobj=b"x", path_in_repo="a b.txt", repo_id="pages/printed")
    pull = api.upload_file(
        path_or_fileobj=b"x", path_in_repo="c.txt", repo_id="pages/printed", create_pr=True
    )
    data = api.create_repo("pages/printed", repo_type="dataset")
    for address in (url, data, commit.commit_url, str(commit), pull.pr_url):
        assert browser.get(str(address)).status_code == 200, address


@pytest.mark.parametrize("path", ["/", "/pages/expert", "/no/such", "/pages/expert/tree/main"])
def test_a_client_that_asks_for_json_gets_the_answer_of_before(
    browser: httpx2.Client, path: str
) -> None:
    answer = browser.get(path, headers={"Accept": "application/json"})
    assert answer.status_code == 404
    assert answer.headers["X-Error-Code"] == "RepoNotFound"
    assert answer.json()["error"].startswith("This Hub has nothing at /")


@pytest.mark.parametrize(
    "path", ["/no/such", "/pages/expert/tree/no", "/a/b/c/d", "/api/no", "/pages/expert/info/refs"]
)
def test_errors_are_pages_only_for_browsers(browser: httpx2.Client, path: str) -> None:
    for accept in ("*/*", "application/json"):
        answer = browser.get(path, headers={"Accept": accept})
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json()["error"]
    answer = browser.get(path)
    is_page = answer.headers["Content-Type"].startswith("text/html")
    assert is_page == (not path.startswith("/api/"))


def test_the_api_and_the_files_never_become_pages(browser: httpx2.Client, expert: str) -> None:
    assert browser.get(f"/api/models/{expert}").json()["id"] == expert
    assert browser.post(f"/{expert}", json={}).status_code in (404, 405)
    answer = browser.get(f"/{expert}/resolve/main/README.md")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    for path in ("/api", "/api/nothing", "/v1/x"):
        answer = browser.get(path, headers={"Accept": "*/*"})
        assert answer.headers["Content-Type"] == "application/json", path


def test_what_is_hidden_and_what_is_missing_look_the_same(
    browser: httpx2.Client, api: HfApi
) -> None:
    api.create_repo("pages/hidden", private=True)
    hidden, missing = browser.get("/pages/hidden"), browser.get("/pages/absent")
    assert hidden.status_code == missing.status_code == 404
    assert hidden.text.replace("hidden", "absent") == missing.text.replace("hidden", "absent")
    assert "hubmerge hub open" in hidden.text


def test_a_gated_repository_says_so(browser: httpx2.Client, api: HfApi, repo: str) -> None:
    api.update_repo_settings(repo, gated="auto")
    answer = browser.get(f"/{repo}")
    assert answer.status_code == 401
    assert "is restricted" in answer.text


@pytest.mark.parametrize("path", [
    "/pages/expert/blob/main/../../../etc/passwd", "/pages/expert/blob/main/%2e%2e/%2e%2e/x",
    "/pages/expert/blob/main/..%2f..%2fhub.json", "/pages/expert/tree/main/%2e%2e",
    "/pages/expert/tree/..%2f..", "/pages/..%2f..", "/..%2f../x", "/-/..%2fbase.html",
    "/-/base.html", "/pages/expert/blob/main/%00", "/pages/expert/blob/main/%ff", "/%ff/%ff",
    "/pages/expert/commit/HEAD~1", "/pages/expert/discussions/..%2f1",
])  # fmt: skip
def test_nothing_outside_of_the_repository_is_shown(browser: httpx2.Client, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code in (400, 404), path
    assert "root:" not in answer.text
    assert list(dangers_of(answer.text)) == []


def test_a_foreign_host_name_gets_no_page(browser: httpx2.Client) -> None:
    assert browser.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_files_are_shown_as_text_pictures_and_tensors(
    browser: httpx2.Client, put: Put, expert: str
) -> None:
    html = b"<script>alert(1)</script>"
    files = {
        "page.html": html,
        "big.txt": b"0123456789" * 30000,
        "bytes.bin2": b"\0\1",
        "x.svg": html,
    }
    put("pages/files", files)
    page = read_page(browser.get("/pages/files/blob/main/page.html").text)
    assert page.texts("pre", class_="source") == [html.decode()]
    big = read_page(browser.get("/pages/files/blob/main/big.txt").text)
    assert len(big.all("pre", class_="source")[0].text) == 256 << 10
    assert "Only the first" in big.text
    assert "It is not text" in browser.get("/pages/files/blob/main/bytes.bin2").text
    assert not read_page(browser.get("/pages/files/blob/main/x.svg").text).all("img")
    picture = read_page(browser.get(f"/{expert}/blob/main/curve.png").text).all("img")[0]
    assert re.fullmatch(rf"/{expert}/resolve/[0-9a-f]{{40}}/curve.png", picture.attributes["src"])
    weights = "/hubmerge/tiny-clip/blob/main/open_clip_model.safetensors"
    assert "logit_scale" in read_page(browser.get(weights).text).texts("th", scope="row")


def test_a_revision_is_chosen_by_a_form(browser: httpx2.Client, expert: str) -> None:
    answer = browser.get(f"/{expert}/tree", params={"revision": "step2"})
    assert answer.url.path == f"/{expert}/tree/step2"
    assert browser.get(f"/{expert}/tree", params={"revision": "a/b"}).status_code == 404


def test_a_commit_lists_what_it_changed(browser: httpx2.Client, put: Put, api: HfApi) -> None:
    put("pages/changes", {"a.txt": b"x", "b.txt": b"x"})
    put("pages/changes", {"a.txt": b"xy"}, "Change <i>a</i>\n\nBecause.")
    sha = str(api.delete_file("b.txt", "pages/changes").oid)
    history = read_page(browser.get("/pages/changes/commits/main").text)
    assert "Change <i>a</i>" in history.texts("p", class_="row-name")
    page = read_page(browser.get(f"/pages/changes/commit/{sha}").text)
    assert page.texts("td") == ["removed", "1 bytes", ""]
    page = read_page(browser.get(history.links()["Change <i>a</i>"]).text)
    assert page.texts("td") == ["changed", "1 bytes", "2 bytes"]
    assert "Because." in page.text


def test_a_pull_request_has_a_page(browser: httpx2.Client, expert: str) -> None:
    page = read_page(browser.get(f"/{expert}/discussions").text)
    address = page.links()["Add <b>x</b>"]
    page = read_page(browser.get(address).text)
    assert "pull request by local" in page.text
    assert page.links()["files"] == f"/{expert}/tree/refs%2Fpr%2F1"
    assert browser.get(page.links()["files"]).status_code == 200


STYLE = Path(hubmerge.__file__).parent / "server/pages/assets/page.css"
REPORT_STYLE = Path(hubmerge.__file__).parent / "reports/assets/page.css"


def colours(style: Path) -> dict[str, tuple[str, str]]:
    found = re.findall(r"(--\w+): light-dark\((#\w{6}), (#\w{6})\)", style.read_text())
    return {name: (light, dark) for name, light, dark in found}


def test_the_colours_are_those_of_the_report_and_have_contrast() -> None:
    own, report = colours(STYLE), colours(REPORT_STYLE)
    assert {name: own[name] for name in own if name in report}.items() <= report.items()
    for theme in (0, 1):
        for name, least in (("--ink", 7), ("--soft", 4.5), ("--link", 4.5), ("--field", 3)):
            for background in ("--paper", "--raised"):
                ratio = contrast(own[name][theme], own[background][theme])
                assert ratio >= least, (name, background, theme, ratio)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours by WCAG 2.2."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    values = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_style_sheet_is_cached_by_its_content(browser: httpx2.Client) -> None:
    page = read_page(browser.get("/").text)
    address = page.all("link", rel="stylesheet")[0].attributes["href"]
    answer = browser.get(address)
    assert answer.headers["Content-Type"] == "text/css; charset=utf-8"
    assert "immutable" in answer.headers["Cache-Control"]
    assert browser.get("/favicon.ico").headers["Content-Type"] == "image/svg+xml"
