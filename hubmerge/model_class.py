"""Which Auto class of transformers loads a language model, by the configuration in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# The files that name a class, in the order in which they are looked at.
CLASS_FILES = ("config.json", "adapter_config.json")
_LOADERS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}
_TASK_TYPES = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}


def language_loader(read: Callable[[str], str]) -> str | None:
    """Return the Auto class of a language model, None if its configuration does not show it.

    `read` returns the text of a file of the model, or "" if there is none. A model's config.json
    names its class; an adapter's configuration names that of its base, or the task type.
    """
    for name in CLASS_FILES:
        config = _parse(read(name))
        names = [*_strings(config.get("architectures")), *_strings(config.get("auto_mapping"))]
        found = [
            loader
            for class_name in names
            for ending, loader in _LOADERS.items()
            if class_name.endswith(ending)
        ]
        if found:
            return found[0]
        if task_loader := _TASK_TYPES.get(str(config.get("task_type"))):
            return task_loader
    return None


def _parse(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _strings(value: Any) -> list[str]:
    """The class names in a list of architectures, or in peft's mapping."""
    values = [value.get("base_model_class")] if isinstance(value, dict) else value
    return [name for name in values if isinstance(name, str)] if isinstance(values, list) else []
