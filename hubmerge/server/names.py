"""Valid names of repositories, refs and files; other names are refused with a message."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from hubmerge.server.http_errors import BadPath, BadRequest

KINDS = ("models", "datasets", "spaces")

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@/-]{0,199}")
_SHA = re.compile(r"[0-9a-f]{40}")
_MAX_PATH_BYTES = 1024
_MAX_SEGMENT_BYTES = 255
# Bidirectional overrides can display "exe.fdp" as "pdf.exe".
_BIDI = {"\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"}


@dataclass(frozen=True)
class RepoId:
    """One repository: its kind (models, datasets, spaces), its owner and its name."""

    kind: str
    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def web_path(self) -> str:
        """The path of the repository in web URLs: models are at the root."""
        return str(self) if self.kind == "models" else f"{self.kind}/{self}"

    @property
    def problem(self) -> str:
        """Why the id is invalid; empty if it is valid."""
        if self.kind not in KINDS:
            return f"Unknown kind of repository {self.kind!r}: use model, dataset or space."
        return problem_of_name("owner", self.owner) or problem_of_name("name", self.name)


def check_repo(repo: RepoId) -> RepoId:
    """Return an id that is safe as a folder name and valid for clients, else raise BadRequest."""
    if repo.problem:
        raise BadRequest(repo.problem)
    return repo


def check_ref(name: str) -> str:
    """Return a valid branch or tag name that cannot be mistaken for a commit; raises BadRequest."""
    if not _REF.fullmatch(name) or _git_rejects(name):
        raise BadRequest(
            f"{name!r} cannot name a branch or a tag: use up to 200 letters, digits and . _ - / "
            "with no '..', '//', '@{', leading or trailing dot."
        )
    if _SHA.fullmatch(name) or name == "HEAD" or name.startswith("refs/"):
        raise BadRequest(f"{name!r} would be mistaken for a commit or a full ref name.")
    return name


def check_path(path: str) -> str:
    """Return a relative path that stays inside the folder it is joined to, else raise BadPath."""
    problem = _problem_of_path(path)
    if problem:
        raise BadPath(f"Invalid file path {path[:120]!r}: {problem}.")
    return path


def is_sha(text: str) -> bool:
    """Whether the text is a full commit SHA."""
    return _SHA.fullmatch(text) is not None


def problem_of_name(field: str, part: str) -> str:
    """Why this is no valid owner or name of a repository; empty if it is valid."""
    if not _PART.fullmatch(part):
        return (
            f"Invalid repository {field} {part[:120]!r}: use 1 to 96 letters, digits, '-', '_' "
            "and '.', not starting with '-' or '.'."
        )
    if "--" in part or ".." in part or part.endswith((".", "-")):
        return (
            f"Invalid repository {field} {part!r}: no '--' or '..', and no '-' or '.' at the end."
        )
    if part.lower().endswith((".git", ".ipynb")):
        return f"Invalid repository {field} {part!r}: it must not end with .git or .ipynb."
    return ""


def _git_rejects(name: str) -> bool:
    segments = name.split("/")
    return (
        ".." in name
        or "@{" in name
        or name.endswith(".")
        or any(not s or s.startswith((".", "-")) or s.endswith(".lock") for s in segments)
    )


def _problem_of_path(path: str) -> str:
    if not path or len(path.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES:
        return f"it must have 1 to {_MAX_PATH_BYTES} bytes"
    if any(unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI for c in path):
        return "it holds a control character"
    if "\\" in path:
        return "it holds a backslash"
    if path.startswith("-"):
        return "it starts with a dash, like an option"
    return next(filter(None, map(_problem_of_segment, path.split("/"))), "")


def _problem_of_segment(segment: str) -> str:
    if segment in ("", ".", ".."):
        return "it has an empty, '.' or '..' part"
    if segment.lower() == ".git":
        return "it has a part named .git"
    if len(segment.encode()) > _MAX_SEGMENT_BYTES:
        return f"it has a part of more than {_MAX_SEGMENT_BYTES} bytes"
    return ""
