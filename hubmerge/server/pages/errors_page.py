"""An error as a page with a sentence and a way out."""

from __future__ import annotations

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from hubmerge.server.http_errors import (
    EntryMissing,
    GatedRepo,
    HiddenRepo,
    HttpError,
    RepoMissing,
    RevisionMissing,
)
from hubmerge.server.pages.rendering import render_page

_SIGN_IN = Markup(
    "If it is private, open this Hub with <code>hubmerge hub open</code>, which signs your browser "
    "in."
)


def render_error(request: Request, error: Exception, status: int) -> Response:
    """The page of an error; what is hidden and what is missing look the same."""
    title, message, hint = _describe(request, error)
    if isinstance(error, HiddenRepo):
        status = 404
    return render_page(request, "error.html", status, title=title, message=message, hint=hint)


def _describe(request: Request, error: Exception) -> tuple[str, str, str]:
    names = request.path_params
    repository = f"{names.get('owner')}/{names.get('name')}"
    match error:
        case GatedRepo():
            return "Restricted", error.message, _SIGN_IN
        case HiddenRepo() | RepoMissing() if "name" in names:
            return (
                "No such repository",
                f"This Hub has no public repository {repository}.",
                _SIGN_IN,
            )
        case RevisionMissing():
            revision = names.get("revision", "main")
            message = f"{repository} has no branch, tag or commit {revision}."
            return "No such revision", message, "Its page lists what it has."
        case EntryMissing():
            return "Nothing here", error.message, ""
        case HttpError():
            return "This did not work", error.message, ""
    return "Nothing here", f"This Hub has nothing at {request.url.path}", ""
