"""The config.json of a model whose layers are taken from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hubmerge.errors import CheckpointError, raise_together

_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# A value for each layer.
_LIST_KEYS = (
    "layer_types", "layers_block_type", "attention_layers", "mlp_layer_types", "no_rope_layers",
)  # fmt: skip
# What these make of the layers is in one of the lists, if there is one.
_MADE_LISTS = (
    "no_rope_layer_interval", "sliding_window_pattern", "full_attention_interval",
    "global_attn_every_n_layers", "attention_types",
)  # fmt: skip
# The number of a layer decides what it does; with these values it does not.
_INDEX_KEYS: Mapping[str, tuple[object, ...]] = {
    "first_k_dense_replace": (0,),
    "moe_layer_freq": (1,),
    "decoder_sparse_step": (1,),
    "interleave_moe_layer_step": (1,),
    "mlp_only_layers": ([],),
    "cross_attention_layers": ([],),
    "num_kv_shared_layers": (0,),
    "attn_layer_period": (1,),
    "attn_layer_offset": (),
    "expert_layer_period": (1,),
    "expert_layer_offset": (),
    "hybrid_override_pattern": (),
    "block_configs": (),
}
_HINT = "Merge models whose layers do not depend on their number."


def stacked_config(
    config: Mapping[str, Any], sources: Sequence[tuple[Mapping[str, Any], int]]
) -> dict[str, Any]:
    """The configuration with other layers: for each, the configuration that it has, and its number.

    Raises CheckpointError for keys that depend on the numbers of layers and cannot be changed.
    """
    part_name = next((n for n in ("text_config",) if isinstance(config.get(n), dict)), None)
    if part_name is not None and not any(key in config for key in _COUNT_KEYS):
        inner = [(own[part_name], number) for own, number in sources]
        return {**config, part_name: stacked_config(config[part_name], inner)}
    keys = [key for key in _COUNT_KEYS if key in config]
    problems = [
        f"config.json has {key}: {value}, which depends on the numbers of layers."
        for key, value in config.items()
        if _depends_on_numbers(key, value, config)
    ]
    if not keys:
        problems.append(f"config.json has none of {', '.join(_COUNT_KEYS)}.")
    changed = {**config, **dict.fromkeys(keys, len(sources))}
    for key in _LIST_KEYS:
        if not config.get(key):
            continue
        try:
            changed[key] = [own[key][number] for own, number in sources]
        except (KeyError, IndexError, TypeError):
            problems.append(f"config.json has {key}, and that of another model does not fit.")
    raise_together(CheckpointError, problems, _HINT)
    return changed


def _depends_on_numbers(key: str, value: object, config: Mapping[str, Any]) -> bool:
    """Whether a key would mean something else with other layers."""
    if key == "max_window_layers":
        return config.get("use_sliding_window") is True
    if key in _MADE_LISTS:
        return not any(config.get(name) for name in _LIST_KEYS)
    if key in _INDEX_KEYS:
        return value is not None and value not in _INDEX_KEYS[key]
    layers = next((config[name] for name in _COUNT_KEYS if name in config), 0)
    is_of_layers = isinstance(value, list) and len(value) == layers and "layer" in key
    return is_of_layers and key not in _LIST_KEYS
