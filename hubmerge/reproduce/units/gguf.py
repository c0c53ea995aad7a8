"""A language model from a GGUF file, as a folder that transformers loads and hubmerge trains."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hubmerge.errors import UsageError

GGUF_SUFFIX = ".gguf"
_CARD = """---
license: {licence}
library_name: transformers
pipeline_tag: text-generation
---

# {name}

The weights of {file}, dequantised to float32. They have the values that the file stands for, not
those of the model before its quantisation.
"""


def convert_gguf(file: Path, folder: Path) -> Path:
    """Write the model in a GGUF file as safetensors, with its tokenizer and a card.

    The same file gives the same bytes. The card has the licence that the file names. Raises
    UsageError if the package gguf is missing.
    """
    if find_spec("gguf") is None:
        raise UsageError(
            f"{file.name} is a GGUF file, which needs the package gguf.",
            "pip install 'hubmerge[gguf]'",
        )
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fields = gguf.GGUFReader(file).fields
    loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    _without_quantization(loaded).save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    licence = fields["general.license"].contents() if "general.license" in fields else "unknown"
    card = _CARD.format(licence=licence, name=file.stem.partition(".")[0], file=file.name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _without_quantization(loaded: Any) -> Any:
    """The same weights in a new model, as one that was quantised cannot be saved."""
    config = loaded.config
    del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model
