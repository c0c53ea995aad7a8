"""Renders README.md from manifest, scores, lock and routing; equal inputs give equal cards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from hubmerge.cards.author_text import BEGIN, END, assemble_card
from hubmerge.cards.card_input import CardInput, StepTag
from hubmerge.cards.headline import title
from hubmerge.cards.licence import licence_conflicts
from hubmerge.cards.markdown import escape_code, escape_markdown
from hubmerge.cards.metadata import eval_results, front_matter, licence
from hubmerge.cards.sections import template_variables
from hubmerge.cards.training_summary import provenance
from hubmerge.cards.usage import loading_instructions
from hubmerge.manifest import Manifest
from hubmerge.redaction import redact_tokens

__all__ = ["BEGIN", "END", "CardInput", "StepTag", "eval_results", "render_card"]

_TEMPLATES = files("hubmerge") / "cards"


def render_card(card_input: CardInput, previous: str = "") -> str:
    """The card as Markdown, with what its author wrote outside the markers of the previous card.

    Every external string is escaped so that it cannot break the front matter or a table, and access
    tokens in it are redacted.
    """
    manifest = card_input.manifest
    template = _environment().get_template(f"{manifest.kind}.md")
    generated = template.render(
        title=escape_markdown(title(manifest)),
        split=card_input.split,
        provenance=[escape_markdown(line) for line in provenance(manifest)],
        command=escape_code(manifest.command),
        loading=loading_instructions(manifest, card_input.language_loader),
        licence=list(_licence_lines(manifest)),
        version=escape_markdown(str(manifest.versions.get("hubmerge", ""))),
        **template_variables(card_input),
    )
    metadata = front_matter(card_input, title(manifest))
    return redact_tokens(assemble_card(metadata, generated.removesuffix("\n"), previous))


@cache
def _environment() -> Environment:
    # The templates are fixed; strings from a Hub are only ever data.
    return Environment(
        loader=FunctionLoader(lambda name: (_TEMPLATES / name).read_text(encoding="utf-8")),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _licence_lines(manifest: Manifest) -> Iterator[str]:
    """The licence of the model, then conflicts and the licence of each source, a line each."""
    named = licence(manifest)
    sources = {source.name: source.licence for source in (manifest.base, *manifest.experts)}
    conflicts = [escape_markdown(conflict) for conflict in licence_conflicts(sources)]
    if manifest.licence:
        yield f"{escape_markdown(manifest.licence)}, as stated by the author."
    elif named and manifest.is_expert and not manifest.experts:
        yield f"{escape_markdown(named)}, that of its base."
    elif named:
        yield f"{escape_markdown(named)}, the most restrictive of the sources' licences."
    elif conflicts:
        yield "No licence is stated because the sources' licences conflict."
    else:
        yield "Unknown: not every source names one. Ask its authors before you rely on it."
    yield from conflicts
    for name, source_licence in sources.items():
        yield f"{escape_markdown(name)}: {escape_markdown(source_licence or 'unknown')}"
