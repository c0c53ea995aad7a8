"""Pages of folders and files. A file is shown as text: nothing in it is taken for HTML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from posixpath import dirname

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from hubmerge.front_matter import card_body
from hubmerge.server.access import readable_repo
from hubmerge.server.http_errors import EntryMissing
from hubmerge.server.names import RepoId
from hubmerge.server.pages.card_html import CardPlace, render_markdown
from hubmerge.server.pages.links import tree_url
from hubmerge.server.pages.paging import take_page
from hubmerge.server.pages.rendering import render_page
from hubmerge.server.pages.tensors import Tensor, read_tensors
from hubmerge.server.pushes import BRANCH, TAG
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import File, Snapshot

_FILES_PER_PAGE = 200
_MAX_TEXT_BYTES = 256 << 10
_MAX_TENSORS = 500
_MAX_REFS = 200
# SVG is left out: on its own it is a document that can hold scripts.
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")


@dataclass(frozen=True)
class Content:
    """What a page shows of a file: text, a picture, tensors, or why there is none of these."""

    text: str | None = None
    html: str = ""
    is_picture: bool = False
    is_cut: bool = False
    tensors: list[Tensor] = field(default_factory=list)
    tensor_count: int = 0
    problem: str = ""


def go_to_revision(request: Request) -> Response:
    """`/tree?revision=x` leads to the files of a revision, by default of main."""
    repo = readable_repo(request)
    revision = request.query_params.get("revision", "").strip() or "main"
    return RedirectResponse(tree_url(repo.id, revision), 303)


def folder(request: Request) -> Response:
    """The files and folders in a folder."""
    repo, revision = readable_repo(request), request.path_params["revision"]
    path = request.path_params.get("path", "").strip("/")
    snapshot = repo.snapshot(revision)
    entries = sorted(snapshot.list_folder(path), key=lambda file: (not file.is_folder, file.path))
    page = take_page(request, entries, _FILES_PER_PAGE, tree_url(repo.id, revision, path))
    return render_page(
        request, "folder.html", repo=repo, revision=revision, snapshot=snapshot, path=path,
        trail=list(_trail(repo.id, revision, path)), page=page, names=_revision_names(repo),
        above=tree_url(repo.id, revision, dirname(path)) if path else "",
    )  # fmt: skip


def file(request: Request) -> Response:
    """A file as text, up to 256 KiB of it; a picture, or the tensors of weights."""
    repo, revision = readable_repo(request), request.path_params["revision"]
    snapshot = repo.snapshot(revision)
    found = _find(snapshot, request.path_params["path"])
    place = CardPlace(repo.id, revision, found.path)
    return render_page(
        request, "file.html", repo=repo, revision=revision, snapshot=snapshot, file=found,
        trail=list(_trail(repo.id, revision, found.path)),
        content=_read(snapshot, found, place), limit=_MAX_TEXT_BYTES,
    )  # fmt: skip


def _find(snapshot: Snapshot, path: str) -> File:
    """The file at a path, even if its content was deleted for good; raises EntryMissing."""
    for found in snapshot.find_files([path]):
        if not found.is_folder:
            return found
    raise EntryMissing(f"There is no file {path[:200]} at {snapshot.sha[:12]}.")


def _read(snapshot: Snapshot, file: File, place: CardPlace) -> Content:
    name = file.path.lower()
    try:
        content = snapshot.open(snapshot.file(file.path))
    except EntryMissing as error:
        return Content(problem=f"{error.message}.")
    with content:
        if name.endswith(".safetensors"):
            tensors = read_tensors(content)
            problem = "" if tensors else "Its header cannot be shown."
            return Content(
                tensors=tensors[:_MAX_TENSORS], tensor_count=len(tensors), problem=problem
            )
        if name.endswith(_PICTURES):
            return Content(is_picture=True)
        data = content.read(_MAX_TEXT_BYTES + 1)
    text = _as_text(data[:_MAX_TEXT_BYTES])
    if text is None:
        return Content(problem="It is not text.")
    is_cut = len(data) > _MAX_TEXT_BYTES
    html = render_markdown(card_body(text), place) if name.endswith(".md") and not is_cut else ""
    return Content(text=text, html=html, is_cut=is_cut)


def _as_text(data: bytes) -> str | None:
    """The text of a file, None for a binary one; its end may be in the middle of a character."""
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        is_cut_character = len(data) == _MAX_TEXT_BYTES and error.start >= len(data) - 3
        return data.decode(errors="ignore") if is_cut_character else None


def _trail(id: RepoId, revision: str, path: str) -> Iterator[tuple[str, str]]:
    """(name, URL) of each folder on the way to a path."""
    parts = path.split("/") if path else []
    for number, name in enumerate(parts):
        yield name, tree_url(id, revision, "/".join(parts[: number + 1]))


def _revision_names(repo: Repository) -> list[str]:
    """Branches and tags to choose from; any other can be typed."""
    return [*repo.refs(BRANCH), *repo.refs(TAG)][:_MAX_REFS]
