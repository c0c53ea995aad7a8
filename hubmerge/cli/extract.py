"""hubmerge extract"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from hubmerge.cli.options import (
    Dtype,
    Heads,
    Option,
    ResultOptions,
    StepPattern,
    Tied,
    Vocabulary,
    parse_licence,
)
from hubmerge.cli.session import Session, command
from hubmerge.refs import parse_ref
from hubmerge.weights.kept_shares import parse_shares

if TYPE_CHECKING:
    from hubmerge.flows.extract import ExtractedAdapter, ExtractRequest, PreparedExtraction


@dataclass(frozen=True)
class ExtractOptions:
    """How the adapter is extracted."""

    rank: Annotated[int, typer.Option(help="Rank of the LoRA.")]
    base: Annotated[
        str | None, Option(help="Base of the expert, if its manifest does not name it.")
    ] = None
    step_pattern: StepPattern = None
    dtype: Dtype = None
    heads: Heads = None
    tied: Tied = None
    vocabulary: Vocabulary = None


@command
def extract(
    session: Session,
    expert: Annotated[str, typer.Argument(help="A whole expert: owner/name@step64 or a folder.")],
    *,
    options: ExtractOptions,
    result_options: ResultOptions,
) -> None:
    """Extract a LoRA from an expert of which all weights were trained.

    It is the closest adapter of that rank, and no training is needed. How much of the change it
    keeps is printed and recorded.

    Example: hubmerge extract me/cars@step64 --rank 16 --out ./cars-lora
    """
    with session.open_hub(options.step_pattern) as hub, session.progress() as progress:
        from hubmerge.flows.extract import extract_and_publish, prepare_extraction

        request = _make_request(expert, options, result_options)
        prepared = prepare_extraction(hub, request, session.home / "extracted")
        for note in prepared.notes:
            session.print_message(note)
        if result_options.dry_run:
            _print_plan(session, prepared)
            return
        extracted = extract_and_publish(hub, prepared, progress)
    _print_extracted(session, prepared, extracted, result_options.push)


def _make_request(
    expert: str, options: ExtractOptions, result_options: ResultOptions
) -> ExtractRequest:
    from hubmerge.flows.extract import ExtractRequest
    from hubmerge.weights.match_options import MatchOptions

    return ExtractRequest(
        expert=parse_ref(expert),
        rank=options.rank,
        base=parse_ref(options.base) if options.base else None,
        out=result_options.out,
        push=result_options.target,
        private=result_options.private,
        dtype=options.dtype,
        replace=result_options.replace,
        licence=parse_licence(result_options.licence),
        options=MatchOptions(options.tied, options.heads or "keep", options.vocabulary),
        dry_run=result_options.dry_run,
    )


def _print_plan(session: Session, prepared: PreparedExtraction) -> None:
    data = {**_to_json(prepared), "notes": prepared.notes}
    lora, expert = prepared.lora, prepared.manifest.experts[0].label
    where = f" into {prepared.folder}"
    if not prepared.is_hashed:
        data["recipe"] = None  # the bytes of local folders decide it, and they are not read
        if prepared.request.out is None:
            data["folder"], where = None, ""
    session.print_result(
        f"would extract {expert}{where} as a LoRA of rank {lora.rank} of at most "
        f"{len(lora.modules)} modules",
        data,
    )


def _print_extracted(
    session: Session, prepared: PreparedExtraction, extracted: ExtractedAdapter, push: str | None
) -> None:
    manifest = extracted.manifest
    title = f"extracted {manifest.experts[0].label} into {extracted.folder}"
    if extracted.commit:
        title += f", {push} at {extracted.commit[:12]}"
    shares = parse_shares(manifest.training.get("lora"))
    if shares is not None:
        from hubmerge.cards.lora import describe_adapter, describe_left_out

        title += f", {describe_adapter(shares)}"
        for line in describe_left_out(shares):
            session.print_message(line)
    session.print_result(
        title,
        {
            **_to_json(extracted),
            "notes": prepared.notes,
            "commit": extracted.commit,
            "digest": manifest.digest,
            "lora": shares.to_json() if shares else None,
        },
    )


def _to_json(extraction: PreparedExtraction | ExtractedAdapter) -> dict[str, object]:
    manifest = extraction.manifest
    expert = manifest.experts[0]
    return {
        "folder": str(extraction.folder),
        "recipe": manifest.recipe,
        "params": dict(manifest.params),
        "expert": {"label": expert.label, "sha": expert.sha},
        "base": {"label": manifest.base.label, "sha": manifest.base.sha},
    }
