"""One vocabulary: public names use the words of the glossary, and private metaphors are gone."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import hubmerge
from hubmerge import forgetting, lock, manifest, results, routing, scores, trials
from hubmerge.cli.app import make_app
from hubmerge.opening import delta
from hubmerge.retention import plan

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hubmerge"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| word")
]
FILES = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
FILES += [*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]


def words_of(name: str) -> set[str]:
    """The words of an identifier, an option or a text, in lower case."""
    return {word.lower() for word in set(re.findall(r"[A-Z]*[a-z]+|[A-Z]+", name))}


# Words that a reader had to learn from us. As a part of an identifier they are all gone.
PRIVATE = words_of(
    """
    told tell tells said says its those begun dressed wear worn stand standing blamed traffic
    keeping tryout tryouts arena rung arms shop mute heed heeded vouch vouched vouching mend mended
    wayout whereabouts trainee deck sealed
    """
)
# Public names, options and keys are made of the glossary's words and of these, which mean in
# hubmerge what they mean in any program.
PLAIN = words_of(
    """
    accumulate accuracy address after against allow alpha any apply as augment batch before bits
    bucket by c charts check chosen classes clip code columns command conclusive config cost
    count counts create cut data debug decay delete device drop dropout dry dtype emit env error
    eval evaluate evaluations every examples exhaustive explain explanation export extract
    factor figures files flops folder for format from gb group hardest hubmerge id in index json
    k keep kind known label last layout learnt left licence license limit list load locked loss
    lr machine max merged metric min model models month name no noise nonfinite note notes only
    open original out own owner paper parameters params parse parts per picture pictured pieces
    plan points port precision predicted price private provenance pull purge push q quiet ray
    rebuild recompute ref replace repo report repos request requested results resume retries
    revoke role rounding row rows rslora sampling save schedule scored search seconds seed
    series serve set setting sha share size source spec spent start state statement status
    stderr stream tables taken target targets temperature threshold tied title to token top
    track train trained training tune usage usd user validation value values verdict verdicts
    verify version versions weight where words work workers x y yes
    """
)
VARIANTS = {"experts": "expert", "tasks": "task", "recipes": "recipe", "claims": "claim"}


def identifiers(path: Path) -> Iterator[str]:
    """Every name that a file defines or uses."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("test_"):  # which is a sentence
                yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr != "tell":  # of a file
            yield node.attr


def private_names(path: Path) -> set[str]:
    """The names in a file, and its own, that have a private word."""
    names = {path.stem}
    # Most files have none of the words, not even in prose: only the others are parsed.
    if PRIVATE & words_of(path.read_text(encoding="utf-8")):
        names |= set(identifiers(path))
    return {name for name in names if PRIVATE & words_of(name)}


# One test for all files: a test for each would be an eighth of all tests.
def test_private_words_are_no_identifiers() -> None:
    assert len(FILES) > 900
    private = {path.relative_to(ROOT).as_posix(): private_names(path) for path in FILES}
    assert {path: names for path, names in private.items() if names} == {}


def test_no_class_name_means_two_things() -> None:
    names = Counter(
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r"(?m)^\s*class (\w+)", path.read_text(encoding="utf-8"))
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_the_glossary_explains_each_word_once_in_one_sentence_with_its_source() -> None:
    words = [word for word, _, _ in ROWS]
    assert words == sorted(words, key=str.lower)
    assert len(words) == len(set(words))
    for word, meaning, source in ROWS:
        assert meaning.endswith("."), word
        assert ". " not in meaning, word
        assert source, word


def public_names() -> Iterator[str]:
    """What users type or read: the public API, commands and options, keys of files."""
    yield from hubmerge.__all__
    yield from command_names(typer.main.get_command(make_app()))
    for module in (delta, forgetting, lock, manifest, plan, results, routing, scores, trials):
        for value in vars(module).values():
            if dataclasses.is_dataclass(value) and value.__module__ == module.__name__:
                yield from (field.name for field in dataclasses.fields(value))


def command_names(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for name, inner in getattr(command, "commands", {}).items():
        yield name
        yield from command_names(inner)


def test_public_names_use_the_words_of_the_glossary() -> None:
    explained = {part for word, _, _ in ROWS for part in words_of(word)}
    unknown = {
        name
        for name in public_names()
        for word in words_of(name)
        if word not in PLAIN and VARIANTS.get(word, word.removesuffix("s")) not in explained
        if word not in explained
    }
    assert not unknown, "say it in a word of docs/glossary.md, or explain the word there"
