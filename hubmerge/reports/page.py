"""Renders results as one self-contained HTML page that needs no network and no other file.

Equal results give equal bytes. All data is escaped, and the content security policy of the page
allows only its own script and style, each by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from hubmerge.redaction import redact_tokens
from hubmerge.reports.sections import sections
from hubmerge.reports.verdicts import WORDS, count_verdicts
from hubmerge.results import Results

_ASSETS = files("hubmerge") / "reports" / "assets"
_SCRIPTS = ("scale.js", "draw.js", "tip.js", "chart.js", "theme.js")


def render_page(all_results: Sequence[Results]) -> str:
    """The page of these recipes, in this order."""
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
        sections=sections(all_results),
        counts=count_verdicts(results.verdict for results in all_results),
        claims=count_verdicts(claim.verdict for results in all_results for claim in results.claims),
        verdict_words=WORDS,
        style=Markup(style),
        script=Markup(script),
        policy=_content_security_policy(style, script),
    )
    return redact_tokens(page)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _script() -> str:
    """All scripts in one function scope."""
    return '(() => {\n"use strict";\n' + "".join(map(_asset, _SCRIPTS)) + "})();\n"


def _content_security_policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src {_hash_source(style)}; script-src {_hash_source(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash_source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
