"""Folders of tiny embedding models, in the layouts of sentence-transformers 2 and of 6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.models.builders import WIDTH, tiny_bert

OLD = "sentence_transformers.models"
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling",
    "Dense": "sentence_transformers.base.modules.dense",
    "Normalize": "sentence_transformers.base.modules.normalize",
}
DENSE_WIDTH = 16
STACK = ("Transformer", "Pooling", "Dense", "Normalize")


def tiny_embedder(
    folder: Path,
    modules: tuple[str, ...] = STACK,
    pooling: str = "mean",
    seed: int = 0,
    is_new: bool = False,
    **config: Any,
) -> Path:
    """A BERT with these modules; `config` is more of config_sentence_transformers.json."""
    tiny_bert(folder, seed=seed)
    write_modules(folder, modules, pooling, is_new, **config)
    generator = torch.Generator().manual_seed(seed)
    for path in folder.glob("*_Dense"):
        weights = {
            "linear.weight": 0.2 * torch.randn(DENSE_WIDTH, WIDTH, generator=generator),
            "linear.bias": 0.1 * torch.randn(DENSE_WIDTH, generator=generator),
        }
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_modules(
    folder: Path,
    modules: tuple[str, ...] = STACK,
    pooling: str = "mean",
    is_new: bool = False,
    max_tokens: int = 48,
    **config: Any,
) -> None:
    """The files of modules beside a model, without weights."""
    listed = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"{NEW[kind] if is_new else OLD}.{kind}",
        }
        for number, kind in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / "config_sentence_transformers.json", {"prompts": {}, **config})
    if not is_new:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens})
    for entry in listed[1:]:
        (folder / str(entry["path"])).mkdir(exist_ok=True)
        kind = str(entry["type"]).rpartition(".")[2]
        if settings := _settings(kind, pooling, is_new):
            write_json(folder / str(entry["path"]) / "config.json", settings)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _settings(kind: str, pooling: str, is_new: bool) -> dict[str, Any]:
    if kind == "Pooling" and is_new:
        modes = pooling.split("+")
        return {"embedding_dimension": WIDTH, "pooling_mode": modes if modes[1:] else modes[0]}
    if kind == "Pooling":
        keys = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens",
                "mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "lasttoken": "lasttoken",
                "weightedmean": "weightedmean_tokens"}  # fmt: skip
        chosen = {f"pooling_mode_{key}": mode in pooling.split("+") for mode, key in keys.items()}
        return {"word_embedding_dimension": WIDTH, **chosen}
    if kind == "Dense":
        activation = "torch.nn.modules.activation.Tanh"
        sizes = {"in_features": WIDTH, "out_features": DENSE_WIDTH}
        return {**sizes, "bias": True, "activation_function": activation}
    return {}
