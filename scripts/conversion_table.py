"""Write the renames of tensors that transformers makes when it loads a model, by class.

    python scripts/conversion_table.py

transformers cannot be imported without torch, so hubmerge reads them from a table. Every class in
transformers' own lists of models is built without memory for its weights, to find the conversions
of all its parts. Classes that cannot be built from their default configuration are listed at the
end.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightConverter, WeightRenaming
from transformers.models.auto import modeling_auto

TABLE = Path(__file__).parents[1] / "hubmerge" / "weights" / "conversions.json"
# Classes that no list of transformers has.
TOWERS = (
    "CLIPVisionModel", "CLIPTextModel", "CLIPVisionModelWithProjection",
    "CLIPTextModelWithProjection", "SiglipVisionModel", "SiglipTextModel", "Siglip2VisionModel",
    "Siglip2TextModel",
)  # fmt: skip
Rename = list[str]  # source pattern, target, scope and base model prefix
Stack = tuple[list[str], str]  # names of experts' matrices, with * for their number, and the target


def class_names() -> list[str]:
    """The classes of all models, heads included."""
    names = set(TOWERS)
    for attribute in dir(modeling_auto):
        if attribute.startswith("MODEL_") and attribute.endswith("MAPPING_NAMES"):
            for value in getattr(modeling_auto, attribute).values():
                names.update([value] if isinstance(value, str) else value)
    return sorted(name for name in names if hasattr(transformers, name))


def conversions_of(name: str) -> tuple[list[Rename], list[Stack]]:
    """The renames of one class, in the order in which transformers applies them, and its stacks."""
    model_class = getattr(transformers, name)
    with torch.device("meta"):
        model = model_class(model_class.config_class())
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    return list(_plain_renames(transforms)), list(_stacks(transforms))


def _stacks(transforms: Any) -> Iterator[Stack]:
    """The matrices of experts that become one tensor [E, O, I]: the patterns of their names."""
    for transform in transforms:
        if type(transform) is not WeightConverter:
            continue
        steps = [(type(step).__name__, getattr(step, "dim", None)) for step in transform.operations]
        if steps in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            yield [*transform.source_patterns], transform.target_patterns[0]


def _plain_renames(transforms: Any) -> Iterator[Rename]:
    for transform in transforms:
        if type(transform) in (WeightRenaming, PrefixChange):
            scope, prefix = transform.scope_prefix, transform.base_model_prefix
            yield [
                # The pattern as transformers compiles it, without the name of its group.
                transform.compiled_sources.pattern.removeprefix("(?P<g0>")[:-1],
                transform.target_patterns[0],
                *([scope, prefix or ""] if scope is not None else []),
            ]


def make_table(names: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The table for these classes, and those that cannot be built."""
    lists: dict[str, list[str]] = {}
    skipped = []
    for name in names:
        try:
            found = conversions_of(name)
        except Exception:
            skipped.append(name)
            continue
        if any(found):
            lists.setdefault(json.dumps(found), []).append(name)
    return {
        "transformers": transformers.__version__,
        "conversions": [
            dict(zip(("renames", "stacks"), json.loads(text), strict=True), classes=classes)
            for text, classes in sorted(lists.items(), key=lambda item: item[1])
        ],
    }, skipped


def render(table: Mapping[str, Any]) -> str:
    """The table as text, one rename in a line."""
    entries = []
    for entry in table["conversions"]:
        renames = ",\n    ".join(json.dumps(rename) for rename in entry["renames"])
        entries.append(
            f'  {{"classes": {json.dumps(entry["classes"])},\n   "renames": [\n    {renames}],\n'
            f'   "stacks": {json.dumps(entry["stacks"])}}}'
        )
    body = ",\n".join(entries)
    return (
        f'{{"transformers": {json.dumps(table["transformers"])},\n "conversions": [\n{body}\n]}}\n'
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    table, skipped = make_table(class_names())
    TABLE.write_text(render(table), encoding="utf-8")
    print(f"{len(table['conversions'])} conversions; not built: {', '.join(skipped)}")
