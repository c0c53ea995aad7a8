"""Which fields of an adapter_config.json are understood, and why the others keep it from merging.

peft passes over fields that it does not know; here each is read, says nothing of the weights, is
at rest, or is refused by name. The lists are peft 0.21.2's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hubmerge.weights.header import shown

FILE = "adapter_config.json"
_RANK_CAP = 1 << 20
BY_PEFT = "Merge the adapter into its base with peft (merge_and_unload), and give the result."
_CONVERTED = (
    "Save it as a plain LoRA with peft (save_pretrained with "
    "path_initial_model_for_weight_conversion), or give the result of its merge_and_unload."
)

Problem = tuple[str, str]  # one sentence, and the way out

_COMMON = {
    "task_type", "auto_mapping", "peft_type", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "target_modules", "exclude_modules", "modules_to_save",
    "fan_in_fan_out",
}  # fmt: skip
# Some say only how training went (dropout), some act only with another that is refused (settings of
# an initialisation).
_UNDERSTOOD = {
    "LORA": _COMMON | {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias",
        "lora_bias", "init_lora_weights", "lora_dropout", "layers_to_transform", "layers_pattern",
        "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
        "loftq_config", "corda_config", "lora_ga_config",
    },
    "IA3": _COMMON | {"feedforward_modules", "init_ia3_weights"},
}  # fmt: skip
_REFUSED = {
    "trainable_token_indices": "trains single rows of an embedding",
    "target_parameters": "adapts bare parameters and not modules",
    "layer_replication": "repeats layers that the base has once",
    "alora_invocation_tokens": "is switched on by certain tokens (aLoRA)",
    "arrow_config": "routes each token to other adapters (Arrow)",
    "use_qalora": "belongs to a quantised base (QALoRA)",
    "megatron_config": "belongs to a Megatron model",
    "monteclora_config": "draws its weights at random (MonteCLoRA)",
    "velora_config": "keeps what its training saw beside its matrices (VeLoRA)",
    "kasa_config": "was trained on a base with other weights (KaSA)",
    "use_bdlora": "stores its matrices as blocks (BD-LoRA)",
    "ensure_weight_tying": "ties its changes to the embedding and to the head",
}
# Those start from B = 0 or leave the base as it is; every other takes its start out of the base.
_HARMLESS_STARTS = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}
_PROMPTS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
    "ADAPTION_PROMPT",
}  # fmt: skip
# A repeated group, a back reference or a lookaround can take a regular expression for ever.
_WILD = re.compile(r"\)[*+?{]|\(\?(?!:)|\\[1-9]")


def problems_of(said: Mapping[str, Any], who: str) -> Iterator[Problem]:
    """Every reason why an adapter with this configuration cannot be merged; `who` names it."""
    kind = str(said.get("peft_type"))
    if kind in _PROMPTS:
        yield f"{who} is {kind}, which has no weights to merge.", "Leave it out."
    elif kind not in _UNDERSTOOD:
        yield (
            f"{who} is an adapter of the kind {_said(kind)}, and only LORA and IA3 can be merged.",
            BY_PEFT,
        )
    else:
        for why, way_out in (*_mistyped(said), *_refused(said, _UNDERSTOOD[kind])):
            yield f"{who} {why}.", way_out


def _mistyped(said: Mapping[str, Any]) -> Iterator[Problem]:
    for key, (fits, wanted) in _TYPES.items():
        if key in said and not fits(said[key]):
            yield (
                f"has {_said(said[key])} for {key} in its {FILE}, which is not {wanted}",
                f"Mend {key} in its {FILE}, or fetch the adapter anew.",
            )


def _refused(said: Mapping[str, Any], understood: set[str]) -> Iterator[Problem]:
    for key, value in said.items():
        if key in _REFUSED and value:
            yield f"{_REFUSED[key]}: {key} in its {FILE}", BY_PEFT
        elif key not in understood and value:
            unknown = f"sets {shown(key)!r} to {_said(value)} in its {FILE}"
            yield f"{unknown}, which this hubmerge does not know", BY_PEFT
    start = said.get("init_lora_weights", True)
    if str(start).lower() not in _HARMLESS_STARTS:
        changed = "starts from a base whose weights were changed"
        yield f"{changed} (init_lora_weights is {_said(start)})", _CONVERTED


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= _RANK_CAP  # True is an int too


def _is_finite(value: object) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def _is_switch(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_map_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    def is_map(value: object) -> bool:
        pairs = value.items() if isinstance(value, dict) else ()
        sound = value is None or isinstance(value, dict)
        return sound and all(_is_tame(name) and fits(inner) for name, inner in pairs)

    return is_map


def _are_names(value: object) -> bool:
    if isinstance(value, str):
        return _is_tame(value)
    names = value if isinstance(value, list) else []
    return isinstance(value, list | None) and all(isinstance(name, str) for name in names)


def _is_tame(key: str) -> bool:
    """Whether a pattern is sound, and so simple that trying it on a name ends soon."""
    loops = sum(map(key.count, "*+{"))
    choices = sum(map(key.count, "?|"))
    if len(key) > 500 or loops > 3 or choices > 16 or _WILD.search(key):
        return False
    try:
        return bool(pattern(key))
    except (re.error, OverflowError, RecursionError):
        return False


def pattern(key: str) -> re.Pattern[str]:
    """As peft.utils.other.get_pattern_key has it: the key ends the name, after a dot if any."""
    return re.compile(rf"(.*\.)?({key})$")


def _said(value: object) -> str:
    """A value as one prints it, short and safe."""
    text = shown(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


_MAP = "a map of names, or of plain patterns, to"
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, f"a whole number from 1 to {_RANK_CAP:,}"),
    "lora_alpha": (_is_finite, "a finite number"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "rank_pattern": (_is_map_of(_is_rank), f"{_MAP} ranks"),
    "alpha_pattern": (_is_map_of(_is_finite), f"{_MAP} finite numbers"),
    "feedforward_modules": (_are_names, "a list of names, or a plain pattern"),
    "use_rslora": (_is_switch, "true or false"),
    "use_dora": (_is_switch, "true or false"),
    "lora_bias": (_is_switch, "true or false"),
    "fan_in_fan_out": (_is_switch, "true or false"),
}
