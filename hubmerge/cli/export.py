"""hubmerge export"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hubmerge.cli.session import Session, command


@command
def export(
    session: Session,
    model: Annotated[
        str, typer.Argument(help="A mixture of experts: owner/name@step64 or a folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the result.")],
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="peft-arrow, for PEFT alone; or transformers, a folder with its own code that "
            "AutoModel runs only with trust_remote_code=True.",
        ),
    ] = "peft-arrow",
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is in --out.")] = False,
) -> None:
    """Write a mixture of experts for use without hubmerge.

    The README.md in the folder shows how to load it.

    Example: hubmerge export me/moe@step64 --as transformers --out ./exported
    """
    with session.open_hub() as hub:
        from hubmerge.flows.load import export_moe

        folder = export_moe(hub, model, form, out, replace)
    session.print_result(f"{form} in {folder}", {"folder": str(folder), "format": form})
