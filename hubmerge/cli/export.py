"""hubmerge export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubmerge.cli.session import Session, verb


@verb
def export(
    session: Session,
    mixture: Annotated[str, typer.Argument(help="A mixture: owner/name@step64 or a folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the result.")],
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="peft-arrow, for PEFT alone; or transformers, whose folder brings code that "
            "AutoModel runs only with trust_remote_code=True.",
        ),
    ] = "peft-arrow",
    replace: Annotated[bool, typer.Option("--replace", help="Replace what lies in --out.")] = False,
) -> None:
    """Write a mixture for people without hubmerge; its README says how to open it."""
    with session.connected() as hub:
        from hubmerge.flows.load import export as write

        folder = write(hub, mixture, form, out, replace)
    session.show(f"{form} in {folder}", {"folder": str(folder), "format": form})
