"""Learn the byte-pair merges of the base's own small vocabulary from its captions."""

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex
from open_clip.tokenizer import bytes_to_unicode

# The words open_clip's tokenizer will look for: runs of letters, single digits, other marks.
WORD = regex.compile(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")

Pieces = tuple[str, ...]


def learn_merges(captions: list[str], most: int = 400) -> list[tuple[str, str]]:
    """Join the commonest neighbours until words are whole or there are `most` merges."""
    counts = Counter(word for text in captions for word in WORD.findall(text.lower()))
    spelt = {word: spell(word) for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in spelt.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            break
        # Equal counts: the pair met first wins, so the order of the captions decides.
        best = pairs.most_common(1)[0][0]
        merges.append(best)
        spelt = {word: join(pieces, best) for word, pieces in spelt.items()}
    return merges


def spell(word: str) -> Pieces:
    """Split a word into bytes, written as open_clip writes them, the last one marked."""
    letters = bytes_to_unicode()
    *first, last = (letters[byte] for byte in word.encode())
    return (*first, f"{last}</w>")


def join(pieces: Pieces, pair: tuple[str, str]) -> Pieces:
    """Replace every occurrence of the pair by its join, from left to right."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return tuple(joined)


def write_merges(file: Path, merges: list[tuple[str, str]]) -> None:
    """Write the merges as open_clip's SimpleTokenizer reads them."""
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    with file.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        packed.write("\n".join(lines).encode())
