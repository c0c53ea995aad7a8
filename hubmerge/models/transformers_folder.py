"""transformers' layout: config.json and model.safetensors, opened from the folder alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from hubmerge.models.tensor_names import TensorNames, tensor_names
from hubmerge.weights.checkpoint import open_checkpoint

WEIGHTS = "model.safetensors"
logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def class_of(config: Mapping[str, Any], names: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class for a model type, by one of transformers' own lists of model type -> class."""
    said = names[config["model_type"]]
    return cast(
        "type[PreTrainedModel]",
        getattr(transformers, said if isinstance(said, str) else said[0]),
    )


def named_class(config: Mapping[str, Any], names: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class that saved the folder, as its config says; `class_of` if transformers has no such.

    With its heads the folder is saved again as it came; any other class would drop some of them.
    """
    said = config.get("architectures") or [None]
    found = getattr(transformers, str(said[0]), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        return class_of(config, names)
    fits = getattr(found.config_class, "model_type", None) == config["model_type"]
    return found if fits else class_of(config, names)


def open_module(folder: Path, kind: type[PreTrainedModel]) -> tuple[Any, TensorNames]:
    """The module of a folder in float32 on the CPU, and the names of its tensors.

    Raises ValueError, naming a tensor, where the folder does not have all that the class needs.
    """
    with _quietly():
        module = cast(Any, kind).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype="float32",
            # Always said: a config may name a kernel on the Hub instead.
            attn_implementation="sdpa" if kind._supports_sdpa else "eager",
        )
    return module, tensor_names(open_checkpoint(folder), module)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; one that does not pad uses its end of sequence, to be masked."""
    # False rather than nothing: transformers would ask on the terminal.
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError("its tokenizer has no token to pad with, nor one that ends a text")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_prompts(tokenizer: Any, prompts: Sequence[str], length: int) -> Any:
    """Prompts as tensors `input_ids` and `attention_mask`, of at most `length` tokens."""
    return tokenizer(
        list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )


def save_module(
    module: Any, names: TensorNames, folder: Path, state: Mapping[str, Tensor] | None
) -> None:
    """Write the weights, in one file and in float32, and the config that says so."""
    save_file(names.tensors(module, state), folder / WEIGHTS, metadata={"format": "pt"})
    module.config.dtype = "float32"  # a base in bfloat16 would have it read back so, and rounded
    module.config.architectures = [type(module).__name__]
    module.config.save_pretrained(folder)


@contextmanager
def _quietly() -> Iterator[None]:
    """transformers reports on what it did not find; we check that by ourselves."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
