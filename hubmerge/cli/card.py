"""hubmerge card"""

from __future__ import annotations

from typing import Annotated

import typer

from hubmerge.cli.options import Private, Split, repository
from hubmerge.cli.session import Session, verb
from hubmerge.refs import parse_ref


@verb
def card(
    session: Session,
    model: Annotated[str, typer.Argument(help="A folder or a revision that hubmerge made.")],
    split: Split = "test",
    push: Annotated[
        str | None, typer.Option(help="Publish it with its new card: owner/name.")
    ] = None,
    private: Private = False,
) -> None:
    """Tell the model card from manifest and scores; write it into the folder, push it if asked."""
    ref, to = parse_ref(model), repository(push)
    with session.connected() as hub:
        from hubmerge.flows.card import card as tell

        told = tell(hub, ref, session.log, split, to, private)
    session.show(told.text, {"card": told.text, "commit": told.commit})
    if told.commit:
        session.say(f"Pushed to {push} at {told.commit[:12]}.")
