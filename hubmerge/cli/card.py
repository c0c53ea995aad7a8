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
    eval_results: Annotated[
        bool,
        typer.Option("--eval-results", help="Also write scores as .eval_results for the Hub."),
    ] = False,
) -> None:
    """Tell the model card from manifest, scores and lock; write it into the folder, push it."""
    ref, to = parse_ref(model), repository(push)
    with session.connected() as hub:
        from hubmerge.flows.card import card as tell

        told = tell(hub, ref, session.log, split, to, private, eval_results)
    data = {"card": told.text, "commit": told.commit, "eval_results": told.results or None}
    session.show(told.text, data)
    if told.commit:
        session.say(f"Pushed to {push} at {told.commit[:12]}.")
