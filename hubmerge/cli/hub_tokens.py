"""hubmerge hub token: the tokens of the users of the embedded Hub."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import UnknownName, UsageError
from hubmerge.hub.environment import hub_folder

Option, Argument = typer.Option, typer.Argument
Data = Annotated[Path | None, Option(help="Data folder. [~/.hubmerge/hub]")]
app = typer.Typer(
    help="Create, list and revoke the tokens of a Hub of your own.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip


class TokenRole(StrEnum):
    """What a token may do."""

    read = "read"
    write = "write"


@app.command("create")
@command
def create(
    session: Session,
    user: Annotated[str, Option(help="The user; their repositories are USER/NAME.")],
    role: Annotated[TokenRole, Option(help="read, or read and write.")] = TokenRole.read,
    data: Data = None,
) -> None:
    """Create a token for a user, and print it once.

    Private repositories of a user are hidden from all others. An owner that is no user, as in
    team/model, is a team of all users. The user `local` is you, and sees everything.

    Example: hubmerge hub token create --user ada --role write
    """
    from hubmerge.server.names import problem_of_name
    from hubmerge.server.tokens import Tokens

    if problem := problem_of_name("user", user):
        raise UsageError(problem, "Choose a name that can own repositories.")
    token = Tokens(_open(data)).create(user, role.value)
    session.print_message(f"A token for {user} that may {_may(role.value)}; it is not shown again:")
    print(token)


@app.command("list")
@command
def list_tokens(session: Session, data: Data = None) -> None:
    """List the tokens by their ids; the tokens themselves are not shown.

    Example: hubmerge hub token list
    """
    from hubmerge.server.tokens import Tokens

    tokens = Tokens(_open(data)).list()
    fields = [{"id": id, "user": user.name, "role": user.role} for id, user in tokens.items()]
    rows = [tuple(item.values()) for item in fields]
    session.print_result(make_table(("id", "user", "role"), rows), fields)


@app.command("revoke")
@command
def revoke(
    session: Session,
    token: Annotated[str, Argument(help="The id of a token, or a user for all of theirs.")],
    data: Data = None,
) -> None:
    """Revoke a token at once; the repositories of its user stay theirs.

    The token that hubmerge itself uses cannot be revoked.

    Example: hubmerge hub token revoke ada
    """
    from hubmerge.server.tokens import Tokens

    tokens = Tokens(_open(data))
    if not (count := tokens.revoke(token)):
        known = {word for id, user in tokens.list().items() for word in (id, user.name)}
        raise UnknownName("token or user", token, sorted(known))
    session.print_message(f"Revoked {count} token{'s' * (count > 1)}.")


def _open(data: Path | None) -> Path:
    from hubmerge.server.data_folder import open_data_folder

    return open_data_folder(data or hub_folder())


def _may(role: str) -> str:
    return "read" if role == "read" else "read and write"
