"""The eight tasks and the two further domains that the base is pre-trained on.

Class names and templates of the tasks come from their task files: there is one place to read them.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
CATALOG = REPOSITORY / "hubmerge" / "tasks" / "catalog"


@dataclass(frozen=True)
class Domain:
    """A kind of image, its classes and its captions.

    `number` is the domain's address in every seed: it never changes, whatever is added.
    `scripts` are the writing systems it is drawn in, none for other images.
    """

    name: str
    number: int
    scripts: tuple[str, ...]
    template: str
    common_caption: str
    classes: tuple[str, ...]

    @property
    def captions(self) -> list[str]:
        """The caption of every class, by name."""
        return [self.template.format(name) for name in self.classes]


def task_domain(name: str, number: int, scripts: tuple[str, ...], common_caption: str) -> Domain:
    """Return a task as a domain, with the template and classes of its task file."""
    task = yaml.safe_load((CATALOG / f"{name}.yaml").read_text())
    (template,) = task["templates"]
    return Domain(name, number, scripts, template, common_caption, tuple(task["classes"]))


MNIST = task_domain("mini-mnist", 0, (), "a handwritten digit.")
FASHION = task_domain("mini-fashion", 1, (), "a piece of clothing.")
HOUSENUM = task_domain("mini-housenum", 2, ("digits",), "a street number.")
LATIN = task_domain("mini-latin", 3, ("latin_upper", "latin_lower"), "a latin letter.")
GREEK = task_domain("mini-greek", 4, ("greek",), "a greek letter.")
HEBREW = task_domain("mini-hebrew", 5, ("hebrew",), "a hebrew letter.")
KANA = task_domain("mini-kana", 6, ("hiragana",), "a japanese kana.")
TEXTURE = task_domain("mini-texture", 9, (), "a texture.")

CYRILLIC = Domain(
    name="cyrillic",
    number=7,
    scripts=("cyrillic",),
    template="the cyrillic letter {}.",
    common_caption="a cyrillic letter.",
    classes=(
        *("a", "be", "ve", "ghe", "de", "ie", "zhe", "ze", "i", "short i", "ka", "el", "em", "en"),
        *("o", "pe", "er", "es", "te", "u", "ef", "ha", "tse", "che", "sha", "shcha"),
        *("hard sign", "yeru", "soft sign", "e", "yu", "ya"),
    ),
)
DEVANAGARI = Domain(
    name="devanagari",
    number=8,
    scripts=("devanagari",),
    template="the devanagari letter {}.",
    common_caption="a devanagari letter.",
    classes=(
        *("ka", "kha", "ga", "gha", "nga", "ca", "cha", "ja", "jha", "nya", "tta", "ttha", "dda"),
        *("ddha", "nna", "ta", "tha", "da", "dha", "na", "nnna", "pa", "pha", "ba", "bha", "ma"),
        *("ya", "ra", "la", "va", "sha", "ssa", "sa", "ha"),
    ),
)

TASKS = (MNIST, FASHION, HOUSENUM, LATIN, GREEK, HEBREW, KANA, TEXTURE)
DOMAINS = tuple(sorted((*TASKS, CYRILLIC, DEVANAGARI), key=lambda domain: domain.number))
