"""hubmerge card"""

from __future__ import annotations

from typing import Annotated

import typer

from hubmerge.cli.options import EvalSplit, Private, parse_push_target
from hubmerge.cli.session import Session, command
from hubmerge.refs import parse_ref


@command
def card(
    session: Session,
    model: Annotated[str, typer.Argument(help="A folder or a revision made by hubmerge.")],
    split: EvalSplit = "test",
    push: Annotated[
        str | None, typer.Option(help="Publish the model with its new card: owner/name.")
    ] = None,
    private: Private = False,
    eval_results: Annotated[
        bool,
        typer.Option("--eval-results", help="Also write scores as .eval_results for the Hub."),
    ] = False,
) -> None:
    """Write the model card from manifest, scores and lock.

    The card of a folder is written into it. Text of the author outside the generated part is kept.

    Example: hubmerge card ./merged --push me/merged
    """
    ref, target = parse_ref(model), parse_push_target(push)
    with session.open_hub() as hub:
        from hubmerge.flows.card import update_card

        result = update_card(hub, ref, session.score_log, split, target, private, eval_results)
    session.print_result(
        result.text,
        {"card": result.text, "commit": result.commit, "eval_results": result.results or None},
    )
    if result.commit:
        session.print_message(f"Pushed to {push} at {result.commit[:12]}.")
