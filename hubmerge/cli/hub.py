"""hubmerge hub serve, hubmerge hub status: the embedded Hub."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from hubmerge.cli.session import Session, verb
from hubmerge.cli.tables import table
from hubmerge.errors import HubUnreachable
from hubmerge.hub.environment import hub_folder

Option = typer.Option
app = typer.Typer(
    help="The embedded Hub: a Hub of your own on this machine.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip


@app.command("serve")
@verb
def serve(
    session: Session,
    port: Annotated[
        int, Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 0,
    data: Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")] = None,
) -> None:
    """Run the embedded Hub until Ctrl-C; `--hub local` uses it, and any other client may."""
    from hubmerge.server.process import serve as run

    folder = data or hub_folder()
    session.say(
        f"Serving {folder} on 127.0.0.1; `hubmerge hub status` tells its address. Ctrl-C stops it."
    )
    run(folder, port)


@app.command("status")
@verb
def status(
    session: Session,
    data: Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")] = None,
    env: Annotated[
        bool, Option("--env", help="Print what other clients need, to be eval'ed by a shell.")
    ] = False,
) -> None:
    """Whether the embedded Hub runs, and where."""
    from hubmerge.server.leases import standing
    from hubmerge.server.state import ask_status

    folder = data or hub_folder()
    state = standing(folder)
    if state is None:
        raise HubUnreachable(
            f"No Hub runs on {folder}.",
            "Start one with `hubmerge hub serve`; `--hub local` starts one by itself.",
        )
    if env:
        # Xet cannot be refused by a server, so a client must be told not to use it.
        print(f"export HF_ENDPOINT={state.url} HF_HUB_DISABLE_XET=1")
        print(f"export HF_HUB_CACHE={quote(str(folder / 'cache'))}")
        print(f"export HF_TOKEN_PATH={quote(str(state.token_file))}")
        return
    said = {
        "url": state.url,
        "pid": state.pid,
        "data": str(folder),
        **ask_status(state.url, full=True),
    }
    session.show(table(("", ""), list(said.items())), said)
