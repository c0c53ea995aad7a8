"""Checkpoints whose weights cannot be read as they are, and the command that makes whole ones."""

from __future__ import annotations

import re
from collections.abc import Collection

from hubmerge.model_files import PICKLE_SUFFIXES

_DEEPSPEED_FOLDER = re.compile(r"global_step\d+/.*(?:model|optim)_states\.pt$")
_DEEPSPEED_SCRIPT = "zero_to_fp32.py"
_FSDP_SHARDS = re.compile(r"(pytorch_model_fsdp_\d+)/.*\.distcp$")
_FSDP_WHOLE = "pytorch_model_fsdp.bin"
# What only a continued training needs: optimizer, learning rate, random numbers, arguments.
_TRAINING_STATE = re.compile(
    r"optimizer.*|scheduler.*|rng_state.*|scaler\.pt|training_args\.bin|random_states_\d+\.pkl"
    r"|latest|zero_to_fp32\.py|tokens_state\.json|.*\.distcp|.*_states\.pt"
)


def find_safe_weights(names: Collection[str]) -> bool:
    """Whether a folder with these files, by path, has weights as safetensors at its root."""
    return any("/" not in name and name.endswith(".safetensors") for name in names)


def explain_weights(label: str, names: Collection[str]) -> tuple[str, str] | None:
    """Why the weights cannot be published, and the command that converts them; None if they can.

    `names` are the paths of the files of a checkpoint, which is not opened.
    """
    if find_safe_weights(names):
        return None
    if any(_DEEPSPEED_FOLDER.search(name) for name in names):
        script = f"{label}/{_DEEPSPEED_SCRIPT}" if _DEEPSPEED_SCRIPT in names else _DEEPSPEED_SCRIPT
        return (
            f"{label} has its weights only as shards of DeepSpeed.",
            f"`python {script} {label} {label} --safe_serialization` makes whole weights of them; "
            "or train with stage3_gather_16bit_weights_on_model_save.",
        )
    for name in sorted(names):
        if match := _FSDP_SHARDS.search(name):
            return (
                f"{label} has its weights only as shards of FSDP.",
                f"`accelerate merge-weights {label}/{match[1]} {label}` makes whole weights of "
                "them, for axolotl `axolotl merge-sharded-fsdp-weights CONFIG`; or train with "
                "fsdp_state_dict_type: FULL_STATE_DICT.",
            )
    pickled = [n for n in sorted(names) if n.endswith(PICKLE_SUFFIXES) and _may_be_weights(n)]
    if pickled:
        source = f"{label}/{_FSDP_WHOLE}" if _FSDP_WHOLE in pickled else label
        return (
            f"{label} has its weights only as pickles ({pickled[0]}), which can run code.",
            f"`hubmerge import {source} --out DIR` takes the tensors out without running them.",
        )
    return f"{label} has no weights: no safetensors file is in it.", ""


def is_training_state(name: str) -> bool:
    """Whether a file, by path, is a state that only continued training needs, or a pickle."""
    plain = name.rpartition("/")[2]
    return bool(_TRAINING_STATE.fullmatch(plain)) or plain.endswith(PICKLE_SUFFIXES)


def _may_be_weights(name: str) -> bool:
    return "/" not in name and not _TRAINING_STATE.fullmatch(name)
