"""Tiny models with the tensors of Llama, for configurations of mergekit; written to folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hubmerge.weights.dtypes import Array
from tests.weights.adapters import save_adapter

HIDDEN, INNER, VOCABULARY, LAYERS = 6, 10, 12, 4
# Models by name: a seed, and the number of layers.
MODELS = {"base": (0, 4), "alpha": (1, 4), "beta": (2, 4), "gamma": (3, 4), "tall": (4, 6)}
ADAPTERS = {"adapter-one": 5, "adapter-two": 6}
_PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")


def config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def tensors(name: str) -> dict[str, Array]:
    """The weights of a model: those of the base with noise of its own seed."""
    seed, layers = MODELS[name]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        for part, shape in _PROJECTIONS.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
        for part in _NORMS:
            shapes[f"model.layers.{layer}.{part}.weight"] = (HIDDEN,)
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    common, own = np.random.default_rng(0), np.random.default_rng(100 + seed)
    found = {}
    for tensor, shape in shapes.items():
        values = common.normal(size=shape) + (0.5 * own.normal(size=shape) if seed else 0)
        found[tensor] = values.astype(np.float32)
    return found


def write_models(root: Path) -> None:
    """Write all models and adapters below a folder."""
    for name, (_, layers) in MODELS.items():
        (root / name).mkdir(parents=True)
        save_file(tensors(name), root / name / "model.safetensors", {"format": "pt"})
        (root / name / "config.json").write_text(json.dumps(config(layers)))
    for name in ADAPTERS:
        parts, settings = adapter(name)
        save_adapter(root / name, parts, **settings)


def adapter(name: str) -> tuple[dict[str, Array], dict[str, object]]:
    """LoRA of two modules in every layer of the base, by peft's names without their prefix."""
    random = np.random.default_rng(ADAPTERS[name])
    parts: dict[str, Array] = {}
    for layer in range(LAYERS):
        for part in ("self_attn.q_proj", "mlp.down_proj"):
            outputs, inputs = _PROJECTIONS[part]
            module = f"model.layers.{layer}.{part}"
            parts[f"{module}.lora_A.weight"] = random.normal(size=(2, inputs)).astype(np.float32)
            parts[f"{module}.lora_B.weight"] = random.normal(size=(outputs, 2)).astype(np.float32)
    return parts, {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": "./base",
    }
