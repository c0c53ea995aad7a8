"""Names that are refused, by the functions and over HTTP."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.server.http_errors import BadPath, BadRequest
from hubmerge.server.names import RepoId, check_path, check_ref, check_repo

HOSTILE_PATHS = {
    "up": "../x",
    "up inside": "a/../../b",
    "here": "a/./b",
    "absolute": "/etc/passwd",
    "empty part": "a//b",
    "folder": "a/",
    "drive": "C:\\x",
    "share": "\\\\h\\s",
    "nul": "a\x00b",
    "newline": "a\nb",
    "ansi": "a\x1b[31mb",
    "right to left": "a\u202egpj.exe",
    "option": "-rf",
    "long option": "--config=x",
    "git": ".git/config",
    "git, other case": "a/.GIT/hooks/x",
    "long": "a" * 300,
    "very long": "a/" * 600 + "b",
    "empty": "",
}
HOSTILE_REFS = {
    "up": "../../x",
    "up inside": "a/../b",
    "space": "a b",
    "nul": "a\x00b",
    "ansi": "\x1b[31m",
    "option": "-rf",
    "lock": "a.lock",
    "dot": ".a",
    "dot inside": "a/.b",
    "brace": "a@{1}",
    "backslash": "a\\b",
    "long": "a" * 300,
    "commit": "a" * 40,
    "head": "HEAD",
    "full": "refs/heads/x",
    "homoglyph": "st\u0435p1",
    "empty": "",
}
HOSTILE_NAMES = {
    "up": "..",
    "up inside": "a..b",
    "slash": "a/b",
    "nul": "a\x00b",
    "newline": "a\n",
    "backslash": "a\\b",
    "option": "-rf",
    "dot": ".a",
    "git": "a.git",
    "dashes": "a--b",
    "long": "a" * 97,
    "quoted": "%2e%2e",
    "homoglyph": "r\u0435po",
    "empty": "",
}


@pytest.mark.parametrize("path", HOSTILE_PATHS.values(), ids=HOSTILE_PATHS.keys())
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(BadPath, match="Invalid file path"):
        check_path(path)


@pytest.mark.parametrize("ref", HOSTILE_REFS.values(), ids=HOSTILE_REFS.keys())
def test_a_hostile_ref_is_refused(ref: str) -> None:
    with pytest.raises(BadRequest):
        check_ref(ref)


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_a_hostile_repository_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="Invalid repository"):
        check_repo(RepoId("models", "owner", name))
    with pytest.raises(BadRequest, match="Invalid repository"):
        check_repo(RepoId("models", name, "name"))


@pytest.mark.parametrize("path", [".gitattributes", "ä b/ж.txt", ".eval_results/a.yaml", "a" * 255])
def test_a_valid_path_is_accepted(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize("ref", ["step256", "stage1-step-40000", "a/b", "v1.0+x", "step1=2"])
def test_a_valid_ref_is_accepted(ref: str) -> None:
    assert check_ref(ref) == ref


@given(st.text(max_size=40))
def test_an_accepted_path_stays_inside_the_folder(path: str) -> None:
    try:
        check_path(path)
    except BadPath:
        return
    parts = PurePosixPath(path).parts
    assert not PurePosixPath(path).is_absolute()
    assert ".." not in parts
    assert str(PurePosixPath(path)) == path


@pytest.mark.parametrize("path", HOSTILE_PATHS.values(), ids=HOSTILE_PATHS.keys())
def test_a_hostile_path_is_never_committed(web: httpx2.Client, repo: str, path: str) -> None:
    head = web.get(f"/api/models/{repo}").json()["sha"]
    answer = web.post(
        f"/api/models/{repo}/commit/main",
        content=b"\n".join(
            [
                b'{"key":"header","value":{"summary":"m"}}',
                httpx2.Request("POST", "http://x", json=_file(path)).read(),
            ]
        ),
    )
    assert answer.status_code == 422
    assert "Invalid file path" in answer.json()["error"]
    assert web.get(f"/api/models/{repo}").json()["sha"] == head


@pytest.mark.parametrize("ref", HOSTILE_REFS.values(), ids=HOSTILE_REFS.keys())
def test_a_hostile_tag_is_never_created(web: httpx2.Client, repo: str, ref: str) -> None:
    answer = web.post(f"/api/models/{repo}/tag/main", json={"tag": ref})
    assert answer.status_code == 400
    assert web.get(f"/api/models/{repo}/refs").json()["tags"] == []


@pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_a_hostile_repository_is_never_created(web: httpx2.Client, name: str) -> None:
    answer = web.post("/api/repos/create", json={"name": name, "organization": "o"})
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "..", "a\x00", ".git/config"])
def test_a_hostile_name_is_not_found(web: httpx2.Client, repo: str, name: str) -> None:
    quoted = quote(name, safe="")
    assert web.get(f"/{repo}/resolve/main/{quoted}").status_code == 404
    assert web.get(f"/{repo}/resolve/{quoted}/README.md").status_code == 404
    assert web.get(f"/api/models/{repo}/tree/main/{quoted}").status_code == 404
    # The client shortens one of them to /api/x, which no Hub has.
    assert web.get(f"/api/models/{quoted}/x").status_code in (404, 501)


def _file(path: str) -> dict[str, object]:
    return {"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}}
