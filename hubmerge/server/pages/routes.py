"""The addresses of the pages. Clients that ask for JSON get the answers of before."""

from __future__ import annotations

from collections.abc import Callable

from starlette.convertors import register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubmerge.server.access import current_user
from hubmerge.server.http_errors import NotSignedIn
from hubmerge.server.messages import Json, QuotedConvertor, with_json
from hubmerge.server.names import KINDS
from hubmerge.server.sessions import get_sessions

Handler = Callable[[Request, Exception], Response]

# First segments that are no owner, so that what the API does not have stays missing. Names of
# owners never start with a dash.
_NO_OWNERS = ("api", "lfs", "v1", "-", *KINDS)


class OwnerConvertor(QuotedConvertor):
    """The owner of a repository in a web address."""

    regex = rf"(?!(?:{'|'.join(_NO_OWNERS)})(?:/|$))[^/]+"


register_url_convertor("owner", OwnerConvertor())


def is_browser(request: Request) -> bool:
    """Whether an error should be a page: only browsers say that they want HTML."""
    accepts = request.headers.get("accept", "")
    is_read = request.method in ("GET", "HEAD")
    return is_read and "text/html" in accepts and not request.url.path.startswith("/api/")


def page_for_browsers(handler: Handler) -> Handler:
    """A handler of errors whose answer is a page for browsers; redirects stay as they are."""

    def handle(request: Request, error: Exception) -> Response:
        response = handler(request, error)
        if not is_browser(request) or response.status_code < 400:
            return response
        from hubmerge.server.pages import errors_page

        return errors_page.render_error(request, error, response.status_code)

    return handle


def _page(name: str) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        if not _accepts_html(request):
            raise HTTPException(404)
        # Only now: a command that starts this Hub needs neither Jinja nor Markdown.
        from hubmerge.server.pages import views

        return views.VIEWS[name](request)

    return endpoint


def _accepts_html(request: Request) -> bool:
    accepts = request.headers.get("accept", "*/*")
    return any(kind in accepts for kind in ("text/html", "text/*", "*/*"))


def _sign_in_key(request: Request, body: Json) -> Response:
    """A key that signs one browser in as the user of the token."""
    user = current_user(request)
    if user is None:
        raise NotSignedIn("Send the token of the user whom the browser should read as.")
    return JSONResponse({"key": get_sessions(request).create_key(user)})


def _repository_routes(web_path: str) -> list[Route]:
    return [
        Route(web_path, _page("repository")),
        Route(web_path + "/tree", _page("go_to_revision")),
        Route(web_path + "/tree/{revision:quoted}", _page("folder")),
        Route(web_path + "/tree/{revision:quoted}/{path:rest}", _page("folder")),
        Route(web_path + "/blob/{revision:quoted}/{path:rest}", _page("file")),
        Route(web_path + "/commits/{revision:quoted}", _page("commits")),
        Route(web_path + "/commit/{revision:quoted}", _page("commit")),
        Route(web_path + "/discussions", _page("discussions")),
        Route(web_path + "/discussions/{number:quoted}", _page("discussion")),
    ]


routes = [
    Route("/api/hubmerge/sign-in-key", with_json(_sign_in_key), methods=["POST"]),
    Route("/", _page("repositories")),
    Route("/-/sign-in", _page("sign_in")),
    Route("/-/{name:quoted}", _page("asset")),
    Route("/favicon.ico", _page("icon")),
    Route("/settings/tokens", _page("tokens")),
    Route("/{kind:kind}", _page("kind")),
    Route("/{owner:owner}", _page("owner")),
    *_repository_routes("/{kind:kind}/{owner:quoted}/{name:quoted}"),
    *_repository_routes("/{owner:owner}/{name:quoted}"),
]
