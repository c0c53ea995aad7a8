"""Find font faces that cover a script, and split their families into pretrain, train and test.

A family serves one split of a script only, so that test images show shapes that neither training
nor pre-training has seen for that script.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

from recipes.assets.mini.rows import FontSplit
from recipes.assets.mini.scripts import CHARACTERS

NOT_LETTERS = re.compile(
    r"symbol|dingbat|ornament|math|noto.*(mono|ui)|lastresort|emoji|icons", re.IGNORECASE
)
# First words of a family name that name the foundry or nothing: three words tell families apart.
FOUNDRIES = frozenset(
    ("adf", "aoyagi", "culmus", "font", "fonts", "free", "gfs", "motoya", "noto", "sil", "the")
) | {"tlwg", "yoz"}
LEAST_INK = 8
"""Faces with a character of less ink than this many full pixels, on 40 x 40, have it blank."""


@dataclass(frozen=True)
class Face:
    """One font file, relative to the font folder, and the family it belongs to."""

    file: str
    family: str


@dataclass(frozen=True)
class FontBook:
    """The faces of every script, below one folder."""

    folder: Path
    faces: dict[str, tuple[Face, ...]]

    def families(self, script: str, split: FontSplit) -> list[list[Path]]:
        """Return the font files of one split of a script, one list for each family."""
        families: dict[str, list[Path]] = {}
        for face in self.faces[script]:
            if split_of(face.family, script) == split:
                families.setdefault(face.family, []).append(self.folder / face.file)
        return list(families.values())


def split_of(family: str, script: str) -> FontSplit:
    """Return the split that a family serves for a script: 40 % pretrain, 35 % train, 25 % test."""
    percentile = int(hashlib.md5((family + script).encode()).hexdigest(), 16) % 100
    if percentile < 40:
        return "pretrain"
    return "train" if percentile < 75 else "test"


def read_font_book(folder: Path, cache: Path) -> FontBook:
    """Return the faces below `folder`, from `cache` where it exists (a scan takes a minute)."""
    if not cache.exists():
        fonts = find_faces(folder)
        rows = {script: [[f.file, f.family] for f in faces] for script, faces in fonts.items()}
        cache.write_text(json.dumps(rows, indent=0))
    rows = json.loads(cache.read_text())
    return FontBook(folder, {s: tuple(Face(*row) for row in faces) for s, faces in rows.items()})


def find_faces(folder: Path) -> dict[str, list[Face]]:
    """Look at every font file below `folder` and list the faces that can draw each script."""
    logging.getLogger("fontTools").setLevel(logging.CRITICAL)
    fonts: dict[str, list[Face]] = {script: [] for script in CHARACTERS}
    for file in font_files(folder):
        try:
            with TTFont(folder / file, lazy=True) as font:
                covered = frozenset(font.getBestCmap() or ())
                family = family_of(font, file)
        except (TTLibError, OSError, ValueError, AssertionError):
            continue  # a few packaged files are damaged or hold no Unicode table
        for script, characters in CHARACTERS.items():
            if covered.issuperset(map(ord, characters)) and draws(folder / file, characters):
                fonts[script].append(Face(file, family))
    return fonts


def font_files(folder: Path) -> Iterator[str]:
    """Yield font files of letters below `folder`, relative, sorted; the first of equal names."""
    files = (
        os.path.relpath(os.path.join(index, name), folder)
        for index, _, names in os.walk(folder)
        for name in names
    )
    seen: set[str] = set()
    for file in sorted(files):
        stem, extension = os.path.splitext(os.path.basename(file).lower())
        if extension not in (".ttf", ".otf") or stem in seen or NOT_LETTERS.search(stem):
            continue
        seen.add(stem)
        yield file


def family_of(font: TTFont, file: str) -> str:
    """Return a family's short name: its first word, or three where the first is a foundry."""
    names = font["name"]
    words = (names.getDebugName(16) or names.getDebugName(1) or "").lower().split()
    if not words:
        words = [os.path.splitext(os.path.basename(file).lower())[0]]
    kept = words[:3] if plain(words[0]) in FOUNDRIES else words[:1]
    return plain("".join(kept))


def plain(name: str) -> str:
    """Drop everything but small letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name)


def draws(file: Path, characters: tuple[str, ...]) -> bool:
    """Say whether a face draws every character, most of them differently."""
    try:
        font = ImageFont.truetype(str(file), 24)
        drawings = np.stack([ink(font, character) for character in characters])
    except (OSError, ValueError):
        return False
    if (drawings.sum(1) < LEAST_INK).any():
        return False
    # Faces of one case draw "a" and "A" alike, which is fine; a box for every letter is not.
    return len(np.unique(drawings.round(2), axis=0)) >= len(characters) * 0.9


def ink(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """Return how black each pixel of a 40 x 40 drawing of the character is, flat."""
    image = Image.new("L", (40, 40))
    ImageDraw.Draw(image).text((20, 20), character, font=font, fill=255, anchor="mm")
    return np.asarray(image, np.float32).ravel() / 255
