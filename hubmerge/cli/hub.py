"""hubmerge hub: serve and show the embedded Hub; move repositories between Hubs."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.hub_mirror import pull, push
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import HubUnreachable
from hubmerge.hub.environment import hub_folder

if TYPE_CHECKING:
    from hubmerge.server.faults import Fault

Option = typer.Option
app = typer.Typer(
    help="Run a Hub of your own on this machine, and move repositories between Hubs.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip

app.command("pull")(pull)
app.command("push")(push)


@app.command("serve")
@command
def serve(
    session: Session,
    port: Annotated[
        int, Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 0,
    data: Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")] = None,
    faults: Annotated[
        Path | None, Option(help="YAML file with failures to make, to rehearse them.")
    ] = None,
) -> None:
    """Run the embedded Hub until Ctrl-C.

    `--hub local` uses it; for other clients, see `hubmerge hub status --env`. With --faults it
    fails as the file says: docs/faults.md.

    Example: hubmerge hub serve --port 8080
    """
    from hubmerge.server.process import serve as run

    folder = data or hub_folder()
    plan: list[Fault] = []
    if faults:
        from hubmerge.server.faults import read_fault_plan

        plan = read_fault_plan(faults)
    session.print_message(
        f"Serving {folder} on 127.0.0.1; `hubmerge hub status` prints its address. Ctrl-C stops it."
    )
    run(folder, port, faults=plan)


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
