"""Which fields of an adapter_config.json are supported, and why other fields prevent a merge.

peft ignores fields that it does not know. Here every field is read, has no effect on the weights,
is unset (null, false or empty), or is rejected by name. The lists are peft 0.21.2's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hubmerge.weights.header import safe_name

ADAPTER_CONFIG = "adapter_config.json"
_MAX_RANK = 1 << 20
_MAX_ROWS = 1 << 31
MERGE_WITH_PEFT_HINT = (
    "Merge the adapter into its base with peft (merge_and_unload), and give the result."
)
_CONVERT_HINT = (
    "Save it as a plain LoRA with peft (save_pretrained with "
    "path_initial_model_for_weight_conversion), or give the result of its merge_and_unload."
)

Problem = tuple[str, str]  # one sentence, and a hint

_COMMON_FIELDS = {
    "task_type", "auto_mapping", "peft_type", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "target_modules", "exclude_modules", "modules_to_save",
    "fan_in_fan_out",
}  # fmt: skip
# Some affect only training (dropout), others only apply together with a field that is rejected
# (settings of an initialisation).
_SUPPORTED_FIELDS = {
    "LORA": _COMMON_FIELDS | {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias",
        "lora_bias", "init_lora_weights", "lora_dropout", "layers_to_transform", "layers_pattern",
        "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
        "loftq_config", "corda_config", "lora_ga_config", "trainable_token_indices",
        "ensure_weight_tying", "target_parameters",
    },
    "IA3": _COMMON_FIELDS | {"feedforward_modules", "init_ia3_weights"},
}  # fmt: skip
_UNSUPPORTED_FIELDS = {
    "layer_replication": "repeats layers that the base has once",
    "alora_invocation_tokens": "is switched on by certain tokens (aLoRA)",
    "arrow_config": "routes each token to other adapters (Arrow)",
    "use_qalora": "belongs to a quantised base (QALoRA)",
    "megatron_config": "belongs to a Megatron model",
    "monteclora_config": "draws its weights at random (MonteCLoRA)",
    "velora_config": "stores what its training saw next to its matrices (VeLoRA)",
    "kasa_config": "was trained on a base with other weights (KaSA)",
    "use_bdlora": "stores its matrices as blocks (BD-LoRA)",
}
# Fields of other tools and of old versions of peft that do not change what the weights mean.
_INERT_FIELDS = {"unsloth_fixed", "unsloth_version", "merge_weights", "base_model_class"}
# These start from B = 0 or leave the base unchanged; all others subtract their start from the base.
_SUPPORTED_INITS = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}
_PROMPT_METHODS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
    "ADAPTION_PROMPT",
}  # fmt: skip
# A repeated group, a back reference or a lookaround can make a regular expression take for ever.
_BACKTRACKING = re.compile(r"\)[*+?{]|\(\?(?!:)|\\[1-9]")


def find_config_problems(fields: Mapping[str, Any], label: str) -> Iterator[Problem]:
    """Every reason why an adapter with this configuration cannot be merged; `label` names it."""
    kind = str(fields.get("peft_type"))
    if kind in _PROMPT_METHODS:
        yield f"{label} is {kind}, which has no weights to merge.", "Leave it out."
    elif kind not in _SUPPORTED_FIELDS:
        adapter = f"{label} is an adapter of the kind {_format_value(kind)}"
        yield f"{adapter}, and only LORA and IA3 can be merged.", MERGE_WITH_PEFT_HINT
    else:
        for problem, hint in (
            *_find_type_problems(fields),
            *_find_unsupported(fields, _SUPPORTED_FIELDS[kind]),
        ):
            yield f"{label} {problem}.", hint


def _find_type_problems(fields: Mapping[str, Any]) -> Iterator[Problem]:
    for key, (is_valid, expected) in _FIELD_TYPES.items():
        if key in fields and not is_valid(fields[key]):
            value = _format_value(fields[key])
            yield (
                f"has {value} for {key} in its {ADAPTER_CONFIG}, which is not {expected}",
                f"Correct {key} in its {ADAPTER_CONFIG}, or fetch the adapter again.",
            )


def _find_unsupported(fields: Mapping[str, Any], supported: set[str]) -> Iterator[Problem]:
    for key, value in fields.items():
        if key in _UNSUPPORTED_FIELDS and value:
            yield f"{_UNSUPPORTED_FIELDS[key]}: {key} in its {ADAPTER_CONFIG}", MERGE_WITH_PEFT_HINT
        elif key not in supported | _INERT_FIELDS and value:
            unknown = f"sets {safe_name(key)!r} to {_format_value(value)} in its {ADAPTER_CONFIG}"
            yield f"{unknown}, which this hubmerge does not know", MERGE_WITH_PEFT_HINT
    init = fields.get("init_lora_weights", True)
    if str(init).lower() not in _SUPPORTED_INITS:
        reason = "starts from a base whose weights were changed"
        yield f"{reason} (init_lora_weights is {_format_value(init)})", _CONVERT_HINT


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX_RANK  # True is an int too


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def _is_bool_or_null(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_map_of(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    def is_map(value: object) -> bool:
        pairs = value.items() if isinstance(value, dict) else ()
        is_map_or_null = value is None or isinstance(value, dict)
        return is_map_or_null and all(
            _is_safe_pattern(name) and is_valid(item) for name, item in pairs
        )

    return is_map


def _are_names(value: object) -> bool:
    if isinstance(value, str):
        return _is_safe_pattern(value)
    names = value if isinstance(value, list) else []
    return isinstance(value, list | None) and all(isinstance(name, str) for name in names)


def _is_list_of_names(value: object) -> bool:
    return not value or (isinstance(value, list) and _are_names(value) and len(value) <= 16)


def _are_token_rows(value: object) -> bool:
    """Different row numbers, or such lists by the name of a module."""
    lists = list(value.values()) if isinstance(value, dict) else [value or []]
    return all(
        isinstance(rows, list)
        and all(type(row) is int and 0 <= row < _MAX_ROWS for row in rows)
        and len(set(rows)) == len(rows)
        for rows in lists
    )


def _is_safe_pattern(key: str) -> bool:
    """Whether a pattern is valid, and so simple that matching it with a name is fast."""
    loops = sum(map(key.count, "*+{"))
    choices = sum(map(key.count, "?|"))
    if len(key) > 500 or loops > 3 or choices > 16 or _BACKTRACKING.search(key):
        return False
    try:
        return bool(compile_pattern(key))
    except (re.error, OverflowError, RecursionError):
        return False


def compile_pattern(key: str) -> re.Pattern[str]:
    """Same as peft.utils.other.get_pattern_key: the key must end the name, after a dot if any."""
    return re.compile(rf"(.*\.)?({key})$")


def _format_value(value: object) -> str:
    """A value as text, short and safe to print."""
    text = safe_name(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


_MAP_TO = "a map of names, or of plain patterns, to"
_FIELD_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, f"a whole number from 1 to {_MAX_RANK:,}"),
    "lora_alpha": (_is_finite, "a finite number"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "rank_pattern": (_is_map_of(_is_rank), f"{_MAP_TO} ranks"),
    "alpha_pattern": (_is_map_of(_is_finite), f"{_MAP_TO} finite numbers"),
    "target_parameters": (_is_list_of_names, "a list of names"),
    "feedforward_modules": (_are_names, "a list of names, or a plain pattern"),
    "trainable_token_indices": (_are_token_rows, "row numbers, or a map of names to them"),
    "use_rslora": (_is_bool_or_null, "true or false"),
    "use_dora": (_is_bool_or_null, "true or false"),
    "lora_bias": (_is_bool_or_null, "true or false"),
    "fan_in_fan_out": (_is_bool_or_null, "true or false"),
}
