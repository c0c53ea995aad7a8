"""hubmerge hub pull, hubmerge hub push: repositories with their history, from Hub to Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer

from hubmerge.byte_sizes import format_bytes
from hubmerge.cli.session import Session, command
from hubmerge.cli.tables import make_table
from hubmerge.errors import UsageError

if TYPE_CHECKING:
    from hubmerge.flows.mirror import Transfer, TransferResult
    from hubmerge.hub.client import Hub
    from hubmerge.hub.mirror_folder import MirrorFolder
    from hubmerge.server.names import RepoId

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
Kind = Literal["model", "dataset", "space"]
Repositories = Annotated[
    list[str], typer.Argument(help="Repositories: owner/name, or owner/name@step64.")
]
As = Annotated[
    str | None, typer.Option("--as", help="Name at the target, for one repository. [the same]")
]
KindOption = Annotated[Kind, typer.Option("--kind", help="Kind of the repositories.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the token for the Hub at the address."),
]


@command
def pull(
    session: Session,
    repos: Repositories,
    source: Annotated[
        str, typer.Option("--from", help="Address of the Hub (https://...), or a folder.")
    ],
    new_name: As = None,
    kind: KindOption = "model",
    token_file: TokenFile = None,
) -> None:
    """Bring repositories from another Hub, or a folder, to the Hub of --hub.

    Tags, history and large files come along, and commits keep their SHA. A folder is made by
    `hubmerge hub push --to FOLDER`. Repeat the command after an interruption: it goes on.

    Example: hubmerge hub pull you/mnist --from https://huggingface.co --hub local
    """
    _move(session, repos, new_name, kind, source, token_file, is_pull=True)


@command
def push(
    session: Session,
    repos: Repositories,
    target: Annotated[
        str, typer.Option("--to", help="Address of the Hub (https://...), or a folder.")
    ],
    new_name: As = None,
    kind: KindOption = "model",
    token_file: TokenFile = None,
) -> None:
    """Send repositories of the Hub of --hub to another Hub, or into a folder.

    What differs at the target is reported, and never overwritten. A folder may be carried to a
    place without a network: there, `hubmerge hub pull --from FOLDER`.

    Example: hubmerge hub push you/mnist --to ./suite --hub local
    """
    _move(session, repos, new_name, kind, target, token_file, is_pull=False)


def _move(
    session: Session,
    names: Sequence[str],
    new_name: str | None,
    kind: Kind,
    other: str,
    token_file: Path | None,
    is_pull: bool,
) -> None:
    transfers = _parse_transfers(names, new_name, kind)
    with session.open_hub() as hub, _open_end(other, token_file) as end:
        from hubmerge.flows.mirror import mirror

        work = session.home / "mirror" / (urlsplit(other).netloc or "folder").replace(":", "-")
        with session.progress() as progress:
            source, target = (end, hub) if is_pull else (hub, end)
            moved = mirror(source, target, transfers, work, progress)
    session.print_result(_table(moved), [_fields(item) for item in moved])


def _parse_transfers(names: Sequence[str], new_name: str | None, kind: Kind) -> list[Transfer]:
    from hubmerge.flows.mirror import Transfer

    if new_name and len(names) > 1:
        raise UsageError("--as names one repository.", "Give one repository, or leave --as out.")
    transfers = []
    for name in names:
        repo, _, revision = name.partition("@")
        source = _parse_name(repo, kind)
        target = _parse_name(new_name, kind) if new_name else source
        transfers.append(Transfer(source, target, revision or None))
    return transfers


def _parse_name(name: str, kind: Kind) -> RepoId:
    from hubmerge.server.names import RepoId

    owner, _, rest = name.partition("/")
    id = RepoId(f"{kind}s", owner, rest)
    if id.problem:
        raise UsageError(id.problem, "Write owner/name, or owner/name@step64.")
    return id


@contextmanager
def _open_end(place: str, token_file: Path | None) -> Iterator[Hub | MirrorFolder]:
    """The Hub at an address, or the folder."""
    from hubmerge.hub.client import Hub
    from hubmerge.hub.mirror_folder import MirrorFolder

    address = urlsplit(place)
    if address.scheme not in ("http", "https"):
        if token_file:
            raise UsageError("--token-file is for a Hub.", "Leave it out for a folder.")
        yield MirrorFolder(Path(place).expanduser())
        return
    if not address.hostname or address.username:
        raise UsageError("This is not the address of a Hub.", "Write https://host, no password.")
    if token_file and address.scheme == "http" and address.hostname not in _THIS_MACHINE:
        raise UsageError(
            f"The token would be sent to {address.hostname} without encryption.",
            "Write https://, or reach that Hub through a tunnel to 127.0.0.1.",
        )
    token = _read_token(token_file) if token_file else None
    yield Hub(place.rstrip("/"), lambda: token, Path(), address.netloc)


def _read_token(path: Path) -> str:
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a token: {type(error).__name__}.") from error
    if not token or not token.isascii() or len(token.split()) != 1:
        raise UsageError(f"{path} has no token.", "Write the token alone on its first line.")
    return token


def _table(moved: Sequence[TransferResult]) -> object:
    rows = [
        (
            _label(item),
            ", ".join(_short(name) for name in item.refs[:4])
            + (f" and {len(item.refs) - 4} more" if len(item.refs) > 4 else ""),
            str(item.unchanged),
            f"{item.files} ({format_bytes(item.bytes)})",
        )
        for item in moved
    ]
    return make_table(("repository", "new or moved", "unchanged", "large files"), rows)


def _label(item: TransferResult) -> str:
    source, target = str(item.transfer.source), str(item.transfer.target)
    return source if source == target else f"{source} as {target}"


def _short(ref: str) -> str:
    return ref.split("/", 2)[2]


def _fields(item: TransferResult) -> dict[str, object]:
    return {
        "repository": str(item.transfer.source),
        "as": str(item.transfer.target),
        "refs": [_short(name) for name in item.refs],
        "unchanged": item.unchanged,
        "files": item.files,
        "bytes": item.bytes,
    }
