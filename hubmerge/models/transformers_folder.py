"""transformers' layout, config.json and model.safetensors; loading reads only the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from hubmerge.models.tensor_names import TensorNames, tensor_names
from hubmerge.weights.checkpoint import open_checkpoint

WEIGHTS = "model.safetensors"
logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def class_of_type(config: Mapping[str, Any], names: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class for a model type; `names` is one of transformers' own maps of type -> class."""
    name = names[config["model_type"]]
    return cast(
        "type[PreTrainedModel]",
        getattr(transformers, name if isinstance(name, str) else name[0]),
    )


def class_of_config(config: Mapping[str, Any], names: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class that the config names in `architectures`; `class_of_type` if there is none.

    This class has all heads of the folder, so they are saved again; other classes may drop some.
    """
    architectures = config.get("architectures") or [None]
    model_class = getattr(transformers, str(architectures[0]), None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        return class_of_type(config, names)
    fits = getattr(model_class.config_class, "model_type", None) == config["model_type"]
    return model_class if fits else class_of_type(config, names)


def load_module(
    folder: Path,
    model_class: type[PreTrainedModel],
    attach: Callable[[nn.Module], None] = lambda module: None,
) -> tuple[Any, TensorNames]:
    """The module of a folder in float32 on the CPU, and the names of its tensors.

    `attach` adds to the module what the library does not load, before tensors are named.
    Raises ValueError with the name of a tensor that the folder lacks.
    """
    with without_warnings():
        module = cast(Any, model_class).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype="float32",
            # Always set, because a config may name a kernel on the Hub.
            attn_implementation="sdpa" if model_class._supports_sdpa else "eager",
        )
    attach(module)
    return module, tensor_names(open_checkpoint(folder), module)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; without a padding token, it pads with end of sequence, masked."""
    # trust_remote_code is set to False, because by default transformers asks on the terminal.
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError("its tokenizer has neither a padding nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenize_prompts(tokenizer: Any, prompts: Sequence[str], max_tokens: int) -> Any:
    """Prompts as tensors `input_ids` and `attention_mask`, of at most `max_tokens` tokens."""
    return tokenizer(
        list(prompts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
    )


def save_module(
    module: Any, names: TensorNames, folder: Path, state: Mapping[str, Tensor] | None
) -> None:
    """Write the weights in float32, and the config with this dtype.

    They are one file, and one more for each module of an embedding model.
    """
    for path, tensors in by_subfolder(names.file_tensors(module, state)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / path, metadata={"format": "pt"})
    module.config.dtype = "float32"  # else the bfloat16 of a base would round on the next load
    module.config.architectures = [type(module).__name__]
    module.config.save_pretrained(folder)


def by_subfolder(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file by its path: those of a module are in its subfolder."""
    files: dict[str, dict[str, Tensor]] = {WEIGHTS: {}}
    for name, tensor in tensors.items():
        subfolder, _, own_name = name.rpartition("/")
        path = f"{subfolder}/{WEIGHTS}" if subfolder else WEIGHTS
        files.setdefault(path, {})[own_name] = tensor
    return files


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence transformers' reports of missing weights, which the callers check."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
