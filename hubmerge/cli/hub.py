"""hubmerge hub: the embedded Hub, clients that use it, and moves between Hubs."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli import hub_disk, hub_tokens
from hubmerge.cli.env_formats import EnvFormat, format_env
from hubmerge.cli.hub_mirror import pull, push
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import HubUnreachable, UsageError
from hubmerge.hub.environment import client_environment, hub_folder

if TYPE_CHECKING:
    from hubmerge.server.faults import Fault

Option, Argument = typer.Option, typer.Argument
Data = Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")]
app = typer.Typer(
    help="Run a Hub of your own; move repositories between Hubs.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip
app.add_typer(hub_tokens.app, name="token")

app.command("pull")(pull)
app.command("push")(push)


@app.command("serve")
@command
def serve(
    session: Session,
    port: Annotated[
        int, Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 0,
    data: Data = None,
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
    data: Data = None,
    env: Annotated[
        bool, Option("--env", help="Print environment variables, for other clients.")
    ] = False,
    format: Annotated[EnvFormat, Option(help="With --env: for which shell.")] = EnvFormat.sh,
) -> None:
    """Show whether the embedded Hub runs, and its address.

    With --env any client uses it: eval "$(hubmerge hub status --env)". A token, a proxy or an
    offline mode that is set already is overridden.

    Example: hubmerge hub status --env --format fish
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
        print(format_env(client_environment(state), EnvFormat.json if session.as_json else format))
        return
    fields = {
        "url": state.url,
        "pid": state.pid,
        "data": str(folder),
        **fetch_status(state.url, full=True),
    }
    session.print_result(make_table(("", ""), list(fields.items())), fields)


@app.command("run")
@command
def run(
    session: Session,
    words: Annotated[list[str], Argument(metavar="COMMAND...", help="The command, after --.")],
    data: Data = None,
) -> None:
    """Run a command for which the embedded Hub is the Hub, and exit with its status.

    The Hub is started if it is not running, and ends with its last user.

    Example: hubmerge hub run -- python train.py --push_to_hub
    """
    from hubmerge.server.leases import lease

    with lease(data or hub_folder()) as server:
        variables = {**client_environment(server), "HF_TOKEN": server.token}
        raise typer.Exit(_run(words, {**os.environ, **variables}))


def _run(words: list[str], environment: dict[str, str]) -> int:
    """The exit status of a command, as a shell gives it. Ctrl-C is the command's to handle."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Reset in the child, which would else inherit that Ctrl-C is ignored.
        child = subprocess.Popen(words, env=environment, preexec_fn=_reset_interrupt)
        code = child.wait()
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no command {words[0]!r}.", "Write it after --, as in a shell."
        ) from error
    finally:
        signal.signal(signal.SIGINT, before)
    return 128 - code if code < 0 else code


def _reset_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


hub_disk.add_commands(app)


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
