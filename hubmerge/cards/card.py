"""Manifest + scores + lock + routing -> README.md. Nothing else: the same give the same card."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from hubmerge.cards.author_text import BEGIN, END, whole_card
from hubmerge.cards.card_input import CardInput, StepTag
from hubmerge.cards.headline import title
from hubmerge.cards.licence import clashes
from hubmerge.cards.markdown import code, plain, without_tokens
from hubmerge.cards.metadata import eval_results, front_matter, licence
from hubmerge.cards.sections import about
from hubmerge.cards.training_summary import provenance
from hubmerge.cards.usage import loading
from hubmerge.manifest import Manifest

__all__ = ["BEGIN", "END", "CardInput", "StepTag", "eval_results", "render_card"]

_TEMPLATES = files("hubmerge") / "cards"


def render_card(told: CardInput, before: str = "") -> str:
    """The card as Markdown; what its author wrote outside the markers of `before` stays.

    Every string from outside is escaped: it can neither break the front matter nor a table, and a
    token in it is not repeated.
    """
    manifest = told.manifest
    # Fixed templates over plain data; nothing from a Hub is ever used as a template.
    environment = Environment(
        loader=FunctionLoader(lambda name: (_TEMPLATES / name).read_text(encoding="utf-8")),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    part = environment.get_template(f"{manifest.kind}.md").render(
        title=plain(title(manifest)),
        split=told.split,
        provenance=[plain(line) for line in provenance(manifest)],
        command=code(manifest.command),
        loading=loading(manifest),
        licence=list(_licence(manifest)),
        version=plain(str(manifest.versions.get("hubmerge", ""))),
        **about(told),
    )
    said = front_matter(told, title(manifest))
    return without_tokens(whole_card(said, part.removesuffix("\n"), before))


def _licence(manifest: Manifest) -> Iterator[str]:
    """What it is under, and what its sources are under, a line each."""
    named = licence(manifest)
    sources = {source.name: source.licence for source in (manifest.base, *manifest.experts)}
    problems = [plain(problem) for problem in clashes(sources)]
    if manifest.licence:
        yield f"{plain(manifest.licence)}, as stated by whoever merged."
    elif named and manifest.is_expert:
        yield f"{plain(named)}, that of its base."
    elif named:
        yield f"{plain(named)}, the most restrictive of the sources' licences."
    elif problems:
        yield "None is named, as the sources' licences clash."
    else:
        yield "Unknown: not every source names one. Ask its authors before you rely on it."
    yield from problems
    for name, said in sources.items():
        yield f"{plain(name)}: {plain(said or 'unknown')}"
