"""What draws the images of each domain: its fonts, its look, its patterns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.assets.mini.canvas import GreyImage, to_grey
from recipes.assets.mini.domains import HOUSENUM, TEXTURE, Domain
from recipes.assets.mini.fonts import FontBook
from recipes.assets.mini.glyphs import draw_glyph, draw_house_number, pick_font
from recipes.assets.mini.looks import LOOKS, PRETRAINING_LOOKS, Look
from recipes.assets.mini.rows import PRETRAIN, Draw, Split
from recipes.assets.mini.scripts import CHARACTERS
from recipes.assets.mini.textures import draw_texture


def drawer(domain: Domain, split: Split, book: FontBook) -> Draw:
    """Return what draws a domain's images for a split."""
    if domain is TEXTURE:
        return draw_pretraining_texture if split is PRETRAIN else draw_texture
    return GlyphDrawer(
        families={script: book.families(script, split.fonts) for script in domain.scripts},
        looks=PRETRAINING_LOOKS if split is PRETRAIN else (LOOKS[domain.name],),
        as_house_numbers=domain is HOUSENUM,
    )


def draw_pretraining_texture(rng: np.random.Generator, label: int) -> GreyImage:
    """Draw a texture for pre-training."""
    # Every pre-training image draws a look first; a texture has none but keeps the place.
    rng.integers(len(PRETRAINING_LOOKS))
    return draw_texture(rng, label)


@dataclass(frozen=True)
class GlyphDrawer:
    """Draws characters with the font families of one split, in one of some looks."""

    families: dict[str, list[list[Path]]]
    looks: tuple[Look, ...]
    as_house_numbers: bool

    def __call__(self, rng: np.random.Generator, label: int) -> GreyImage:
        """Draw one image of the class `label`."""
        look = self.looks[rng.integers(len(self.looks))] if len(self.looks) > 1 else self.looks[0]
        beside_others = self.as_house_numbers and rng.random() < 0.7
        script = self.pick_script(rng)
        font = pick_font(rng, self.families[script])
        draw = draw_house_number if beside_others else draw_glyph
        return to_grey(look(rng, draw(rng, CHARACTERS[script][label], font)))

    def pick_script(self, rng: np.random.Generator) -> str:
        """Return the only script, or one of two with equal chance: upper or lower case."""
        first, *others = self.families
        return others[0] if others and rng.random() >= 0.5 else first
