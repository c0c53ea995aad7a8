"""hubmerge card"""

from __future__ import annotations

from typing import Annotated

import typer

from hubmerge.cli.evaluate import SplitName
from hubmerge.cli.merge import _hub_ref
from hubmerge.cli.session import Session, verb
from hubmerge.refs import parse_ref

Option = typer.Option


@verb
def card(
    session: Session,
    model: Annotated[str, typer.Argument(help="A folder or a revision that hubmerge made.")],
    split: Annotated[SplitName, Option(help="Split whose scores are told.")] = "test",
    push: Annotated[str | None, Option(help="Publish it with its new card: owner/name.")] = None,
) -> None:
    """Tell the model card from manifest and scores; write it into the folder, push it if asked."""
    ref, to = parse_ref(model), _hub_ref(push) if push else None
    with session.connected() as hub:
        from hubmerge.flows.card import card as tell

        told = tell(hub, ref, session.log, split, to)
    if session.as_json:
        session.show("", {"card": told.text, "commit": told.commit})
    else:
        print(told.text)
    if told.commit:
        session.say(f"Pushed to {push} at {told.commit[:12]}.")
