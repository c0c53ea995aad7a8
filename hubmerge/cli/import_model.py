"""hubmerge import"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubmerge.cli.options import Option
from hubmerge.cli.session import Session, command
from hubmerge.refs import parse_ref


@command
def import_command(
    session: Session,
    source: Annotated[
        str, typer.Argument(help="Pickled weights: owner/name, a folder, or a file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the result.")],
    file: Annotated[str | None, Option(help="The pickle to import, if there are several.")] = None,
    key: Annotated[
        str | None, Option(help="The key of the state dict, if the file holds several.")
    ] = None,
    replace: Annotated[bool, Option("--replace", help="Replace what is in --out.")] = False,
) -> None:
    """Take the tensors out of pickled weights without running them.

    The result is a folder of safetensors with the model's other files. Nothing is unpickled: a file
    that holds anything but plain data and tensors is refused.

    Example: hubmerge import me/old-bert --out ./old-bert
    """
    with session.open_hub() as hub, session.progress() as progress:
        from hubmerge.flows.import_model import ImportRequest, import_model

        path = Path(source).expanduser()
        place = path if path.exists() else parse_ref(source)
        imported = import_model(hub, ImportRequest(place, out, file, key, replace), progress)
    for note in imported.notes:
        session.print_message(note)
    session.print_result(
        f"{imported.tensors} tensors of {', '.join(imported.files)} in {imported.folder}",
        {
            "folder": str(imported.folder),
            "files": dict(imported.files),
            "tensors": imported.tensors,
            "notes": list(imported.notes),
        },
    )
