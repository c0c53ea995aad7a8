"""The page of a repository: steps, comparison, lineage, and what is broken or missing."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx2
import pytest
from huggingface_hub import HfApi

from hubmerge.server import ServerState
from hubmerge.server.tokens import Tokens
from hubmerge.source import Source
from tests.server.pages.conftest import Put, step_manifest
from tests.server.pages.html_pages import read_page


def test_the_steps_are_a_table_and_a_curve(browser: httpx2.Client, expert: str) -> None:
    page = read_page(browser.get(f"/{expert}").text)
    assert page.texts("h1") == [f"Model {expert}"]
    cells = page.texts("td", class_="number")
    assert cells[:6] == ["60.0 %", "2.0000", "0.25", "70.0 %", "1.0000", "0.5"]
    dots = [title for title in page.texts("title") if title.startswith("step ")]
    assert dots == ["step 1: 60.0 %", "step 2: 70.0 %", "step 4: 80.0 %", "step 8: 90.0 %"]
    assert page.links()["step4"] == f"/{expert}/tree/step4"
    assert "Expert for digits" in page.text


def test_the_card_is_shown_with_its_metadata(browser: httpx2.Client, expert: str) -> None:
    page = read_page(browser.get(f"/{expert}").text)
    assert page.texts("li", class_="chip") == ["image-classification", "mit", "expert"]
    assert page.links()["file"] == f"/{expert}/blob/main/config.json"
    assert page.links()["elsewhere"] == "https://example.org"
    assert page.all("img")[0].attributes["src"] == f"/{expert}/resolve/main/curve.png"
    assert page.texts("h3", id="card-digits") == ["Digits"]
    assert dict(zip(page.texts("dt"), page.texts("dd"), strict=True))["license"] == "mit"


def test_it_says_how_to_load_the_newest_step(browser: httpx2.Client, expert: str) -> None:
    code = read_page(browser.get(f"/{expert}").text).texts("code")
    assert any(f'CLIPModel.from_pretrained("{expert}", revision="step8")' in c for c in code)
    assert any(f"hubmerge verify {expert}@step8 --hub local" in c for c in code)
    assert f"hf download {expert} --revision step8" in code


@pytest.mark.parametrize("query", ["compare=step1..step8", "from=step1&to=step8"])
def test_two_steps_are_compared(browser: httpx2.Client, expert: str, query: str) -> None:
    page = read_page(browser.get(f"/{expert}?{query}").text)
    rows = dict(zip(page.texts("th", scope="row"), pairs(page.texts("td")), strict=True))
    assert rows["validation accuracy"] == ("60.0 %", "90.0 %")
    assert rows["all tensors"] == ("0.25", "2")
    assert rows["layers that changed"] == ("2", "2")
    assert rows["batch"] == ("1", "8")
    assert "lr" not in rows
    assert "hubmerge.json" in rows
    assert "config.json" not in rows


def pairs(cells: list[str]) -> list[tuple[str, str]]:
    return list(zip(cells[::2], cells[1::2], strict=True))


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("compare=step1", 400, "?compare=step64..step256"),
        ("compare=step1..step3", 404, "has no branch, tag or commit"),
        ("steps=x", 400, "must be a whole number"),
        ("compare=step1..step1", 200, "they are the same commit"),
    ],
)
def test_a_wrong_query_is_a_sentence(
    browser: httpx2.Client, expert: str, query: str, status: int, sentence: str
) -> None:
    answer = browser.get(f"/{expert}?{query}")
    assert answer.status_code == status
    assert sentence in read_page(answer.text).text


def test_lineage_goes_both_ways(browser: httpx2.Client, api: HfApi, put: Put, expert: str) -> None:
    sha = str(api.repo_info(expert, revision="step4").sha)
    used = Source(f"{expert}@step4", sha, "e" * 64, step=4, task="digits@0", weight=0.3)
    gone = Source("pages/gone@step2", "1" * 40, "f" * 64, step=2)
    merge = replace(
        step_manifest(1), kind="merge", experts=(used, gone), method="ties", validation=()
    )
    card = f"---\nbase_model: [{expert}, pages/gone]\n---\n".encode()
    put("pages/merge", {"README.md": card, "hubmerge.json": merge.to_bytes()})

    page = read_page(browser.get("/pages/merge").text)
    assert page.links()[f"{expert}@step4"] == f"/{expert}/tree/{sha}"
    assert "pages/gone@step2" in page.texts("th", scope="row")
    assert "pages/gone@step2" not in page.links()
    # The commit of the base that the manifest names was never here, its repository is.
    assert page.links()["hubmerge/tiny-clip@main"] == "/hubmerge/tiny-clip"
    assert "A ties merge of 2 experts" in page.text

    page = read_page(browser.get(f"/{expert}").text)
    assert "pages/merge merge of step 4" in page.texts("li")


def test_private_relatives_are_not_named(browser: httpx2.Client, api: HfApi, put: Put) -> None:
    api.create_repo("pages/secret-merge", private=True)
    card = b"---\nbase_model: hubmerge/tiny-clip\n---\n"
    put("pages/secret-merge", {"README.md": card})
    put("pages/open-child", {"README.md": b"---\nbase_model: pages/secret-merge\n---\n"})
    assert "secret-merge" not in browser.get("/hubmerge/tiny-clip").text
    assert "pages/secret-merge" not in read_page(browser.get("/pages/open-child").text).links()


def test_an_empty_repository_has_a_page(browser: httpx2.Client, repo: str) -> None:
    text = read_page(browser.get(f"/{repo}").text).text
    assert "No card" in text
    assert f"hf download {repo} --revision main" in text


def test_what_is_broken_is_said(browser: httpx2.Client, api: HfApi, put: Put) -> None:
    files = {"hubmerge.json": b"{", "README.md": b"# Text", "config.json": b"[" * 9999}
    sha = put("pages/broken", files)
    api.create_tag("pages/broken", tag="step2", revision=sha)
    put("pages/broken", {"hubmerge.json": json.dumps({"format": 9}).encode()})
    page = read_page(browser.get("/pages/broken").text)
    assert "has format 9" in page.texts("p", class_="warning")[0]
    assert "No numbers: hubmerge.json of this commit is not a valid manifest" in page.text
    assert "AutoModel.from_pretrained" in page.text
    assert browser.get("/pages/broken?compare=step2..main").status_code == 200


def test_text_that_is_not_unicode_is_shown_with_question_marks(
    browser: httpx2.Client, put: Put
) -> None:
    lone = b'{"\\ud800": "\\ud800"}'
    files = {"README.md": b"# &#xd800;", "config.json": lone}
    sha = put("pages/surrogates", {**files, "hubmerge.json": lone})
    put("pages/surrogates", {"config.json": b"{}"})
    for path in ("", f"?compare={sha}..main", "/blob/main/config.json"):
        assert browser.get(f"/pages/surrogates{path}").status_code == 200, path


def test_a_long_card_is_cut_and_linked(browser: httpx2.Client, put: Put) -> None:
    put("pages/long", {"README.md": b"word " * 20000})
    page = read_page(browser.get("/pages/long").text)
    assert page.links()["README.md"] == "/pages/long/blob/main/README.md"


def test_a_data_set_says_how_to_load_it(browser: httpx2.Client, put: Put) -> None:
    name = "Ziffern-1"
    put(f"pages/{name}", {"données/é 1.txt": "grün <b>".encode()}, kind="dataset")
    page = read_page(browser.get(f"/datasets/pages/{name}").text)
    assert f'load_dataset("pages/{name}", revision="main")' in page.text
    folder = read_page(browser.get(f"/datasets/pages/{name}/tree/main/donn%C3%A9es").text)
    address = folder.links()["é 1.txt"]
    assert address == f"/datasets/pages/{name}/blob/main/donn%C3%A9es/%C3%A9%201.txt"
    assert "grün <b>" in read_page(browser.get(address).text).text


def test_no_page_shows_a_token(
    browser: httpx2.Client, hub: ServerState, api: HfApi, put: Put
) -> None:
    token = Tokens(hub.data).create("seeded", "read")
    card = f"---\ntags: [{token}]\nlibrary_name: {token}\nnote: {token}\n---\n# {token}\n".encode()
    manifest = replace(step_manifest(2), command=token, task=f"{token}@0")
    files = {
        "README.md": card,
        "hubmerge.json": manifest.to_bytes(),
        "notes.txt": token.encode(),
        f"{token}.md": token.encode(),
        "config.json": json.dumps({"architectures": [token], "key": token}).encode(),
    }
    sha = put("pages/leak", files, f"{token}\n\n{token}")
    api.create_tag("pages/leak", tag=f"step2-{token}", revision=sha)
    api.upload_file(
        path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="pages/leak",
        commit_message=token, create_pr=True,
    )  # fmt: skip
    for path in (
        "/?search=leak", "/pages/leak", "/pages/leak/discussions", "/pages/leak/discussions/1",
        "/pages/leak/tree/main", "/pages/leak/blob/main/notes.txt",
        "/pages/leak/blob/main/README.md", f"/pages/leak/blob/main/{token}.md",
        "/pages/leak/blob/main/hubmerge.json", "/pages/leak/commits/main",
        f"/pages/leak/commit/{sha}", f"/pages/leak?compare={sha}..main",
        f"/pages/leak/tree/{token}",
        f"/pages/{token}", f"/?search={token}", f"/?owner={token}", f"/-/sign-in?key={token}",
    ):  # fmt: skip
        assert token not in browser.get(path).text, path
