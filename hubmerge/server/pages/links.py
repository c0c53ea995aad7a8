"""Addresses on this Hub; every part is quoted."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from hubmerge.server.names import RepoId


def repo_url(id: RepoId) -> str:
    return f"/{quote(id.web_path)}"


def tree_url(id: RepoId, revision: str, path: str = "") -> str:
    """The page of a folder."""
    return _at(id, "tree", revision, path)


def blob_url(id: RepoId, revision: str, path: str) -> str:
    """The page of a file."""
    return _at(id, "blob", revision, path)


def resolve_url(id: RepoId, revision: str, path: str) -> str:
    """The bytes of a file."""
    return _at(id, "resolve", revision, path)


def commit_url(id: RepoId, sha: str) -> str:
    return _at(id, "commit", sha)


def commits_url(id: RepoId, revision: str) -> str:
    """The page of a history."""
    return _at(id, "commits", revision)


def discussions_url(id: RepoId, number: int | None = None) -> str:
    return f"{repo_url(id)}/discussions" + (f"/{number}" if number is not None else "")


def query_url(path: str, **values: object) -> str:
    """A path with a query of the values that are not empty."""
    query = urlencode({key: value for key, value in values.items() if value not in ("", None)})
    return f"{path}?{query}" if query else path


def _at(id: RepoId, page: str, revision: str, path: str = "") -> str:
    rest = f"/{quote(path)}" if path else ""
    return f"{repo_url(id)}/{page}/{quote(revision, safe='')}{rest}"
