"""Names of models: ModelRef (as the user wrote it), Revision (pinned to a commit)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hubmerge.errors import UsageError

# The Hub's rule for one part of a repository id, without names that git or a shell misreads.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
_PINNED_NAME = re.compile(rf"{_NAME.pattern}/{_NAME.pattern}@{_REVISION.pattern}")
_SHA = re.compile(r"[0-9a-f]{40}")
# A number of at most 12 digits, or of thousands or millions: 0064, 20k, 1.5M.
_NUMBER = r"([0-9]{1,12}|[0-9]{1,6}(?:\.[0-9]{1,3})?[kKM])"
# Names of Pythia, OLMo, SmolLM, Lucie, BLOOM, open-r1 and hubmerge; iterations of Megatron and
# LLM-jp; folders of Trainer; a number alone.
_STEP = re.compile(
    rf"(?:^|[-_/])(?:global_)?(?:steps?|iter|iters|iteration|update|updates|batch)[-_]?{_NUMBER}"
    rf"(?:$|[-_/])"
)
_STEP_AFTER = re.compile(rf"(?:^|[-_/])(?:checkpoint[-_])?{_NUMBER}[-_]?steps?(?:$|[-_/])")
_FOLDER_STEP = re.compile(rf"(?:^|/)checkpoint-{_NUMBER}$")
_BARE_STEP = re.compile(r"([0-9]{1,12})")
# Names that number something else: the checkpoints of LLM360, epochs, tokens.
_ORDINAL = re.compile(
    rf"(?:^|[-_/])(ckpt|checkpoint|epoch|ep|tokens)[-_]?({_NUMBER[1:-1]}|[0-9]{{1,6}}[BT])"
    rf"(?:$|[-_/])"
)
_COUNTED = {"ckpt": "checkpoints", "checkpoint": "checkpoints", "ep": "epochs", "epoch": "epochs"}
_PATTERN_HINT = r"Write --step-pattern 'epoch-(\d+)'."
_FACTORS = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# OLMo's names also contain the number of tokens, which follows from the step.
_TOKENS = re.compile(r"tokens[0-9]+[A-Za-z]?")


@dataclass(frozen=True)
class ModelRef:
    """A model as the user names it: a Hub repository or a local folder; `str()` prints it back."""

    repo_id: str | None = None
    path: Path | None = None
    revision: str | None = None
    subfolder: str | None = None

    @property
    def is_local(self) -> bool:
        return self.path is not None

    @property
    def name(self) -> str:
        """The repository id or the folder, without revision."""
        return str(self) if self.path is not None else str(self.repo_id)

    def __str__(self) -> str:
        if self.path is not None:
            # A relative folder must not read like a repository.
            plain = str(self.path).startswith((".", "/", "~"))
            return str(self.path) if plain else f"./{self.path}"
        revision = f"@{self.revision}" if self.revision else ""
        if not self.subfolder:
            return f"{self.name}{revision}"
        quoted = revision.replace("/", "%2F")
        return f"hf://{self.name}{quoted}/{self.subfolder}"


@dataclass(frozen=True)
class Revision:
    """A model pinned to one commit.

    `origin` is where it was found: tag, branch, folder, commit or local; in a mined history
    last-checkpoint, contents, title or end. `confidence`, 0 to 1, is how certain the step is: 1.0
    if the name proves it, 0.9 for a folder or file contents that state it, 0.5 for the title of a
    commit. `run` numbers the runs of a mined history from 1. `note` is one sentence for the user.
    """

    ref: ModelRef
    sha: str
    step: int | None = None
    origin: str = "branch"
    confidence: float = 1.0
    run: int | None = None
    note: str = ""

    @property
    def label(self) -> str:
        """A short name for messages: owner/name@step64, or owner/name@ and 12 hex digits."""
        if self.ref.is_local:
            return str(self.ref)
        revision = self.ref.revision
        short = revision if revision and not is_sha(revision) else self.sha[:12]
        subfolder = f"/{self.ref.subfolder}" if self.ref.subfolder else ""
        return f"{self.ref.name}@{short}{subfolder}"


def parse_ref(text: str) -> ModelRef:
    """Parse `owner/name[@revision]`, `hf://owner/name[@revision][/folder]`, the URL of a page on
    the Hub, or a local folder.

    A text that starts with `.`, `/` or `~`, or that is an existing folder, is local. Raises
    UsageError for an invalid name.
    """
    _check_printable(text, "reference")
    if text.startswith("hf://"):
        return _parse_uri(text.removeprefix("hf://"), text)
    if text.startswith(("https://", "http://")):
        return _parse_page(text)
    if text.startswith((".", "/", "~")) or Path(text).is_dir():
        return ModelRef(path=Path(text).expanduser())
    repo_id, at, revision = text.partition("@")
    return _hub_ref(repo_id, revision if at else None, None, text)


def is_pinned_name(text: str) -> bool:
    """Whether a text is `owner/name@revision`, and no file or folder."""
    return bool(_PINNED_NAME.fullmatch(text)) and not Path(text).exists()


def _parse_uri(rest: str, text: str) -> ModelRef:
    parts = rest.removeprefix("models/").split("/", 2)
    if len(parts) < 2:
        raise UsageError(f"{text!r} does not name a repository.", "Write hf://owner/name@step64.")
    name, at, revision = parts[1].partition("@")
    subfolder = unquote(parts[2]) if len(parts) == 3 else None
    return _hub_ref(f"{parts[0]}/{name}", unquote(revision) if at else None, subfolder, text)


def _parse_page(text: str) -> ModelRef:
    parts = [unquote(part) for part in urlsplit(text).path.strip("/").split("/")]
    if len(parts) < 2 or (len(parts) > 2 and parts[2] != "tree"):
        raise UsageError(f"{text!r} is not the page of a model.", "Write owner/name@step64.")
    subfolder = "/".join(parts[4:]) or None
    return _hub_ref("/".join(parts[:2]), parts[3] if len(parts) > 3 else None, subfolder, text)


def _hub_ref(repo_id: str, revision: str | None, subfolder: str | None, text: str) -> ModelRef:
    if revision == "":
        raise UsageError(f"{text!r} ends with '@'.", "Write owner/name@step64, or leave '@' out.")
    folder = subfolder.strip("/") if subfolder else None
    return ModelRef(
        repo_id=check_repo_id(repo_id),
        revision=check_revision(revision) if revision else None,
        subfolder=check_inner_path(folder) if folder else None,
    )


def check_repo_id(text: str) -> str:
    """Return a valid `owner/name`, else raise UsageError."""
    _check_printable(text, "repository")
    parts = text.split("/")
    if len(text) > 96:
        raise UsageError(
            f"A repository id of {len(text)} characters is too long: the Hub takes 96."
        )
    is_valid = len(parts) == 2 and all(_NAME.fullmatch(part) for part in parts)
    if not is_valid or "--" in text or ".." in text or text.endswith(".git"):
        raise UsageError(
            f"{printable(text)!r} is not a repository id.",
            "Write owner/name with letters, digits, '-', '_' and '.'; a local folder starts with "
            "'./' or '/'.",
        )
    return text


def check_revision(text: str) -> str:
    """Return a tag, branch or commit name that is safe in URLs and paths, else raise UsageError."""
    _check_printable(text, "revision")
    is_invalid = ".." in text or "//" in text or text.endswith(("/", ".", ".lock")) or "/." in text
    if is_invalid or not _REVISION.fullmatch(text):
        raise UsageError(
            f"{printable(text)[:60]!r} is not a revision.",
            "Write a tag (step64), a branch (main) or a commit.",
        )
    return text


def check_inner_path(text: str) -> str:
    """Return a relative path that stays inside its repository, else raise UsageError."""
    _check_printable(text, "path")
    parts = text.split("/")
    if "\\" in text or any(part in ("", ".", "..") or part.startswith("-") for part in parts):
        raise UsageError(f"{printable(text)[:60]!r} is not a path inside a repository.")
    return text


def check_label(text: str, kind: str) -> str:
    """Return a short name that is safe in paths and HTML, else raise UsageError."""
    _check_printable(text, kind)
    if not _NAME.fullmatch(text) or ".." in text:
        raise UsageError(
            f"{printable(text)[:60]!r} cannot name a {kind}.",
            "Use letters, digits, '-', '_' and '.', at most 96 of them.",
        )
    return text


def is_sha(text: str) -> bool:
    """Whether text is a full commit SHA, 40 hex digits."""
    return _SHA.fullmatch(text) is not None


def step_tag(step: int) -> str:
    """The tag of a step: 64 -> "step64"."""
    return f"step{step}"


def step_of(name: str, pattern: re.Pattern[str] | None = None) -> int | None:
    """The step in a name such as "step64", "iter_0000064", "main-step20k" or "checkpoint-64".

    A `pattern`, whose first group is the number, is tried before the usual names.
    """
    if pattern is not None and (found := pattern.search(name)):
        return parse_number(found[1] or "")
    match = _match_step(name)
    return parse_number(match[1]) if match else None


def parse_number(text: str) -> int | None:
    """A count such as "0064", "20k" or "4B", None for any other text."""
    digits, factor = (text[:-1], _FACTORS[text[-1]]) if text[-1:] in _FACTORS else (text, 1)
    if not re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,3})?", digits):
        return None
    value = Decimal(digits) * factor
    return int(value) if value == int(value) else None


def parse_step_pattern(text: str | None) -> re.Pattern[str] | None:
    """The pattern of --step-pattern; raises UsageError unless it has one group, the number."""
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UsageError(
            f"--step-pattern {text!r} is not a regular expression: {error}.", _PATTERN_HINT
        ) from error
    if pattern.groups != 1:
        raise UsageError(
            f"--step-pattern {text!r} has {pattern.groups} groups, and needs one, the number.",
            _PATTERN_HINT,
        )
    return pattern


def series_of(name: str) -> str:
    """A name without its step: "stage2-ingredient3" for stage2-ingredient3-step9-tokens5B.

    Equal steps of different series are different models.
    """
    match = _match_step(name)
    rest = f"{name[: match.start()]}-{name[match.end() :]}" if match else name
    return _TOKENS.sub("", rest).strip("-_/")


def ordinal_of(name: str) -> int | None:
    """The number in a name that counts something else than steps, None in all others.

    Such as checkpoints ("ckpt_356"), epochs ("epoch-3") or tokens ("tokens-4B").
    """
    match = None if _match_step(name) else _ORDINAL.search(name)
    return parse_number(match[2]) if match else None


def counted_in(name: str) -> str:
    """What the number of `ordinal_of` counts: checkpoints, epochs or tokens."""
    match = _ORDINAL.search(name)
    return _COUNTED.get(match[1], match[1]) if match else "checkpoints"


def _match_step(name: str) -> re.Match[str] | None:
    found = (pattern.search(name) for pattern in (_FOLDER_STEP, _STEP, _STEP_AFTER))
    return next((match for match in found if match), None) or _BARE_STEP.fullmatch(name)


def printable(text: str) -> str:
    """Text with control and direction characters escaped, so that it is safe to print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _check_printable(text: str, kind: str) -> None:
    if not text or not text.isprintable():
        raise UsageError(
            f"{printable(text)[:60]!r} cannot name a {kind}: it is empty or has "
            "characters that do not print."
        )
    if len(text) > 4096:
        raise UsageError(f"A {kind} of {len(text)} characters is too long.")
