"""Results -> one HTML page that needs nothing else: no network, no other file.

The same results are the same bytes. What is not ours is text: the page's policy lets only its own
script and style run, each known by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from hubmerge.cards.markdown import without_tokens
from hubmerge.reports.sections import sections
from hubmerge.reports.verdicts import WORDS, counted
from hubmerge.results import Results

_ASSETS = files("hubmerge") / "reports" / "assets"
_SCRIPTS = ("scale.js", "draw.js", "tip.js", "chart.js", "theme.js")


def render_page(told: Sequence[Results]) -> str:
    """The page of these recipes, in their order."""
    environment = Environment(
        loader=FunctionLoader(_asset),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = _asset("page.css"), _script()
    page = environment.get_template("page.html").render(
        sections=sections(told),
        counts=counted(results.verdict for results in told),
        claims=counted(claim.verdict for results in told for claim in results.claims),
        verdict_words=WORDS,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    )
    return without_tokens(page)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _script() -> str:
    """All scripts as one, whose names nobody else sees."""
    return '(() => {\n"use strict";\n' + "".join(map(_asset, _SCRIPTS)) + "})();\n"


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
