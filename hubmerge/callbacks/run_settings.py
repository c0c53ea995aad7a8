"""The settings of a loop: those that a manifest records, and those that tell runs apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hubmerge.callbacks.model_facts import ModelFacts
from hubmerge.callbacks.target import PushTarget

# Arguments of a Trainer that change no weights of any step: they may differ when a run goes on.
_WITHOUT_EFFECT = re.compile(
    r"output_dir|overwrite_output_dir|logging_.*|log_.*|report_to|run_name|project|trackio_.*"
    r"|save_.*|eval_.*|.*_eval|do_.*|load_best_model_at_end|metric_for_best_model|greater_is_better"
    r"|hub_.*|push_to_hub.*|resume_from_checkpoint|restore_callback_states_from_checkpoint"
    r"|ignore_data_skip|disable_tqdm|per_device_eval_batch_size|per_gpu_eval_batch_size|include_.*"
    r"|prediction_loss_only|batch_eval_metrics|skip_memory_metrics|dataloader_(?!drop_last).*"
    r"|local_rank|ddp_.*|remove_unused_columns|label_names|torch_empty_cache_steps|use_cache"
    r"|enable_jit_checkpoint|dataset_num_proc|torchdynamo|mp_parameters|logging_dir"
)


@dataclass(frozen=True)
class LoopRun:
    """One run of a loop: its id, 64 hex digits, and the settings that its manifests record.

    `last_step` is the planned last step, None if the loop does not know it.
    """

    id: str
    settings: Mapping[str, Any] = field(hash=False)
    layout: str
    loop: str
    last_step: int | None = None

    def variant(self, number: int) -> LoopRun:
        """Another run with the same settings: one that does not repeat the saved steps of this."""
        text = f"{self.id}/{number}"
        return LoopRun(
            hashlib.sha256(text.encode()).hexdigest(),
            self.settings,
            self.layout,
            self.loop,
            self.last_step,
        )


def describe_run(
    target: PushTarget,
    model: ModelFacts,
    settings: Mapping[str, Any],
    identity: Any,
    loop: str,
    last_step: int | None,
) -> LoopRun:
    """A run by what decides its weights and steps: the same script is the same run.

    `identity` are all settings of the loop that change weights, as JSON values.
    """
    task = target.task.digest if target.task else None
    parts = [target.to, target.push_every, task, model.identity, identity]
    text = json.dumps(parts, sort_keys=True, default=lambda value: type(value).__name__)
    recorded = {**model.settings, **settings, "push_every": target.push_every.rstrip(",")}
    run_id = hashlib.sha256(text.encode()).hexdigest()
    return LoopRun(run_id, recorded, model.layout, loop, last_step)


def trainer_identity(args: Any, dataset: object) -> list[Any]:
    """The arguments of a Trainer that change weights, and the number of its training rows."""
    fields = {key: v for key, v in args.to_dict().items() if not _WITHOUT_EFFECT.fullmatch(key)}
    return [fields, args.world_size, count_rows(dataset)]


def count_rows(dataset: object) -> int:
    """The number of rows of a data set, 0 if it does not know it."""
    if not isinstance(dataset, Sized) or isinstance(dataset, Mapping):
        return 0
    with suppress(TypeError, NotImplementedError):  # a stream may have a length in name only
        return len(dataset)
    return 0


def trainer_settings(args: Any, last_step: int) -> dict[str, Any]:
    """The arguments of a Trainer in the words of `hubmerge train`."""
    settings = {
        "anneal": "trajectory",
        "steps": last_step,
        "lr": args.learning_rate,
        "schedule": _plain(args.lr_scheduler_type),
        "warmup_steps": args.get_warmup_steps(last_step),
        "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "accumulate": args.gradient_accumulation_steps,
        "weight_decay": args.weight_decay,
        "clip": args.max_grad_norm,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "optimizer": _plain(args.optim),
        "seed": args.seed,
    }
    return settings | ({"processes": args.world_size} if args.world_size > 1 else {})


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))
