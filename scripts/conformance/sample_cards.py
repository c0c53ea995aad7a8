"""Cards that the client library's tests read, and that its source distribution leaves out.

They are our own, as small as what the tests assert of them.
"""

from __future__ import annotations

from pathlib import Path

_SIMPLE = """---
language:
- en
license: mit
library_name: pytorch-lightning
tags:
- pytorch
- image-classification
datasets:
- beans
metrics:
- acc
---
# my-cool-model

Beans are sorted.
"""
_DATASET = """---
annotations_creators: [crowdsourced, expert-generated]
language_creators: [found]
language: [en]
license: [bsd-3-clause]
multilinguality: [monolingual]
size_categories: [n<1K]
task_categories: [image-segmentation]
task_ids: [semantic-segmentation]
pretty_name: Sample Segmentation
---
# Dataset Card for beans in pieces
"""
_RESULT = """  - task:
      type: image-classification
    dataset:
      type: beans
      name: Beans
      config: {name}
    metrics:
    - type: acc
      value: 0.5
"""
_INDEX = "---\nmodel-index:\n- name: my-cool-model\n  results:\n{results}---\n# my-cool-model\n"
_TEMPLATE = "---\n{{ card_data }}\n---\n\n# %s\n\n{{ some_data }}"
CARDS = {
    "sample_simple.md": _SIMPLE,
    "sample_windows_line_breaks.md": _SIMPLE.replace("\n", "\r\n"),
    "sample_no_metadata.md": "# my-cool-model\n",
    "sample_invalid_card_data.md": "---\n- a list\n---\n# my-cool-model\n",
    "sample_simple_model_index.md": _INDEX.format(
        results=_RESULT.format(name="plain") + _RESULT.format(name="baked")
    ),
    "sample_invalid_model_index.md": "---\nmodel-index:\n- results: none\n---\n# my-cool-model\n",
    "sample_template.md": _TEMPLATE % "{{ model_name | default('my-cool-model') }}",
    "sample_datasetcard_simple.md": _DATASET,
    "sample_datasetcard_template.md": _TEMPLATE % "{{ pretty_name }}",
}


def write_sample_cards(folder: Path) -> None:
    """Write the cards into a new folder."""
    folder.mkdir(parents=True)
    for name, text in CARDS.items():
        (folder / name).write_bytes(text.encode())
