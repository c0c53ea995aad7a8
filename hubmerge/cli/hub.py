"""hubmerge hub serve, status, open: the embedded Hub."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import HubUnreachable
from hubmerge.hub.environment import hub_folder

Option = typer.Option
app = typer.Typer(
    help="Run a Hub of your own on this machine.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip


@app.command("serve")
@command
def serve(
    session: Session,
    port: Annotated[
        int, Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 0,
    data: Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")] = None,
) -> None:
    """Run the embedded Hub until Ctrl-C.

    `--hub local` uses it; for other clients, see `hubmerge hub status --env`.

    Example: hubmerge hub serve --port 8080
    """
    from hubmerge.server.process import serve as run

    folder = data or hub_folder()
    session.print_message(
        f"Serving {folder} on 127.0.0.1; `hubmerge hub status` prints its address. Ctrl-C stops it."
    )
    run(folder, port)


@app.command("status")
@command
def status(
    session: Session,
    data: Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")] = None,
    env: Annotated[
        bool, Option("--env", help="Print export lines for the shell, for other clients.")
    ] = False,
) -> None:
    """Show whether the embedded Hub runs, and its address.

    Example: hubmerge hub status --env
    """
    from hubmerge.server.leases import server_in_use
    from hubmerge.server.state import fetch_status

    folder = data or hub_folder()
    state = server_in_use(folder)
    if state is None:
        raise HubUnreachable(
            f"No Hub runs on {folder}.",
            "Start it with `hubmerge hub serve`, or use `--hub local`, which starts it.",
        )
    if env:
        # A server cannot refuse Xet, so the client must have it switched off.
        print(f"export HF_ENDPOINT={state.url} HF_HUB_DISABLE_XET=1")
        print(f"export HF_HUB_CACHE={quote(str(folder / 'cache'))}")
        print(f"export HF_TOKEN_PATH={quote(str(state.token_file))}")
        return
    fields = {
        "url": state.url,
        "pid": state.pid,
        "data": str(folder),
        **fetch_status(state.url, full=True),
    }
    session.print_result(make_table(("", ""), list(fields.items())), fields)


@app.command("open")
@command
def open_pages(
    session: Session,
    data: Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")] = None,
    browser: Annotated[bool, Option("--browser", help="Open it in the browser, too.")] = False,
) -> None:
    """Print the address of the Hub's pages, which signs one browser in.

    The address works once, for ten minutes. The browser then sees private repositories, and can
    change nothing.

    Example: hubmerge hub open --browser
    """
    import webbrowser

    from hubmerge.server.leases import server_in_use
    from hubmerge.server.sessions import request_link

    state = server_in_use(data or hub_folder())
    if state is None:
        raise HubUnreachable(
            f"No Hub runs on {data or hub_folder()}.", "Start it with `hubmerge hub serve`."
        )
    url = request_link(state)
    session.print_result(url, {"url": url})
    if browser:
        webbrowser.open(url)
