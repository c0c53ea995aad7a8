"""Embedding models: folders of sentence-transformers, and transformers alone with mean pooling.

Shapes: B texts, L tokens, E features of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hubmerge.models.pooling import RUN_MODULES, Pooling, build_module
from hubmerge.models.tensor_names import TensorNames
from hubmerge.models.text_encoder import count_positions, freeze_pooler
from hubmerge.models.transformers_folder import (
    class_of_config,
    load_module,
    load_tokenizer,
    save_module,
)
from hubmerge.weights.embedding_modules import (
    MODEL_CONFIG,
    MODULE_WEIGHTS,
    MODULES_JSON,
    TRANSFORMER_CONFIGS,
    EmbeddingModule,
    EmbeddingStack,
    check_known_modules,
    read_stack,
)

SIMILARITIES = ("cosine", "dot")
_LIBRARY = "sentence_transformers.models"  # a name that versions 2 to 6 understand
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_MEAN = {"modes": ["mean"], "include_prompt": True}
_PLAIN = (EmbeddingModule("Transformer", "", {}), EmbeddingModule("Pooling", "1_Pooling", _MEAN))


class TextEmbedder(nn.Module):
    """Tokens [B, L] and their mask, or several of both -> embeddings [B, E] of each."""

    def __init__(self, body: nn.Module, modules: list[nn.Module]) -> None:
        super().__init__()
        self.body, self.after = body, nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        pairs = zip(inputs[::2], inputs[1::2], strict=True)
        embeddings = tuple(self.embed(ids, mask) for ids, mask in pairs)
        return embeddings[0] if len(embeddings) == 1 else embeddings

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            features: Tensor = hidden
            for module in self.after:
                is_pooling = isinstance(module, Pooling)
                features = module(features, attention_mask) if is_pooling else module(features)
            return features


@dataclass(frozen=True)
class Embedder:
    """An embedding model, with the heads of its folder.

    Modules with weights are attached to `module` by the names of their subfolders, so that they are
    trained, merged and saved with it. `query_prompt` and `document_prompt` are put before texts, as
    `encode_query` and `encode_document` of sentence-transformers do.
    """

    module: Any
    names: TensorNames
    encoder: TextEmbedder
    tokenizer: Any
    max_tokens: int
    width: int
    name: str
    query_prompt: str = ""
    document_prompt: str = ""
    similarity: str = "cosine"
    lower_case: bool = False
    module_folders: tuple[str, ...] = ()
    has_modules: bool = True
    layout: str = "transformers"

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write weights and config; the files of modules too, if the model had none."""
        save_module(self.module, self.names, folder, state)
        complete_modules(self, folder)


def load_embedder(folder: Path, config: dict[str, Any]) -> Embedder:
    """Load the folder with the class that its config names, and its modules; no code is imported.

    Raises CheckpointError for modules that are not supported.
    """
    own_stack = read_stack(folder)
    stack = own_stack or EmbeddingStack(folder, _PLAIN)
    _check_stack(stack)
    module, names = load_module(
        folder, class_of_config(config, MODEL_MAPPING_NAMES), _attach(stack)
    )
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "right"
    attached = dict(module.named_children())
    after = [
        attached.get(each.path) or build_module(each, str(folder)) for each in stack.modules[1:]
    ]
    encoder = TextEmbedder(module.base_model, after).eval()
    freeze_pooler(module.base_model)
    limits = (stack.max_tokens, tokenizer.model_max_length, count_positions(module))
    return Embedder(
        module,
        names,
        encoder,
        tokenizer,
        min(int(limit) for limit in limits if limit),
        _width(module, stack),
        type(module).__name__,
        stack.prompts.get("query", ""),
        next((stack.prompts[name] for name in _DOCUMENT_PROMPTS if name in stack.prompts), ""),
        stack.similarity,
        stack.lower_case,
        tuple(name.rpartition("/")[0] for name in stack.weight_files),
        own_stack is not None,
    )


def _width(module: Any, stack: EmbeddingStack) -> int:
    """The features of an embedding."""
    width = int(module.config.get_text_config().hidden_size)
    for each in stack.modules:
        width *= len(each.settings["modes"]) if each.kind == "Pooling" else 1
        width = int(each.settings["out_features"]) if each.kind == "Dense" else width
    return width


def complete_modules(model: Embedder, folder: Path) -> None:
    """Write the files with which sentence-transformers loads mean pooling, if there are none."""
    if model.has_modules or (folder / MODULES_JSON).is_file():
        return
    listed = [
        {"idx": n, "name": str(n), "path": module.path, "type": f"{_LIBRARY}.{module.kind}"}
        for n, module in enumerate(_PLAIN)
    ]
    pooling = {"word_embedding_dimension": model.width, "pooling_mode_mean_tokens": True}
    transformer = {"max_seq_length": model.max_tokens, "do_lower_case": False}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in (
        (MODULES_JSON, listed),
        (
            MODEL_CONFIG,
            {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        ),
        (TRANSFORMER_CONFIGS[0], transformer),
        ("1_Pooling/config.json", pooling),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_stack(stack: EmbeddingStack) -> None:
    check_known_modules(stack, RUN_MODULES)
    kinds = [module.kind for module in stack.modules]
    if kinds[:1] != ["Transformer"] or kinds.count("Transformer") > 1 or kinds[1:2] != ["Pooling"]:
        raise ValueError(f"its modules are {', '.join(kinds)}, not a Transformer and a Pooling")
    if stack.similarity not in SIMILARITIES:
        raise ValueError(f"its similarity is {stack.similarity!r}, not one of {SIMILARITIES}")


def _attach(stack: EmbeddingStack) -> Any:
    """A function that attaches the modules with weights to a loaded transformer."""

    def attach(module: nn.Module) -> None:
        for each in stack.modules[1:]:
            if f"{each.path}/{MODULE_WEIGHTS}" in stack.weight_files:
                built = build_module(each, str(stack.folder))
                built.load_state_dict(load_file(stack.folder / each.path / MODULE_WEIGHTS))
                module.add_module(each.path, built.float().eval())

    return attach
