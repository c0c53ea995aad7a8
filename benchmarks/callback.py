"""The cost of PushSteps beside a Trainer alone and beside its own `hub_strategy="every_save"`.

A small Llama is trained by three Trainers in turn, on one thread, with an embedded Hub: alone, with
PushSteps at steps 2^k, and with push_to_hub and as many saves at equal distances. A Trainer skips a
push while another one runs. A step is timed from its beginning to the beginning of the next one, so
that everything between them counts. All numbers are ratios to the median step of the Trainer alone
in the same round; "in its code" is the time inside the events of the callback.

    python -m benchmarks.callback              four rounds of 64 steps, some minutes
    python -m benchmarks.callback --rounds 1 --steps 16
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubmerge.server import lease
from hubmerge.training.schedule import push_steps

if TYPE_CHECKING:
    from transformers import Trainer

KINDS = ("alone", "PushSteps", "every_save")
_EVENTS = ("on_train_begin", "on_step_begin", "on_step_end", "on_epoch_end", "on_train_end")
Times = dict[str, Any]


def make_model(width: int) -> Any:
    """A Llama with random weights: 12.6 million parameters at the width 320."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=7,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=64,
        )
    )  # fmt: skip


def make_trainer(kind: str, name: str, steps: int, width: int, folder: Path) -> Trainer:
    """A Trainer of one kind that publishes to the repository `bench/<name>`."""
    import torch
    from transformers import Trainer, TrainingArguments

    from hubmerge import PushSteps

    rows = torch.randint(0, 4096, (64, 64), generator=torch.Generator().manual_seed(0))
    own: dict[str, Any] = {"save_strategy": "no"}
    if kind == "every_save":
        every = max(1, round(steps / len(push_steps("2^k", steps))))
        own = {"save_strategy": "steps", "save_steps": every, "push_to_hub": True,
               "hub_model_id": f"bench/{name}", "hub_strategy": "every_save"}  # fmt: skip
    return Trainer(
        make_model(width),
        TrainingArguments(
            str(folder / name), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
            report_to=[], disable_tqdm=True, logging_strategy="no", **own,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[PushSteps(f"bench/{name}", hub="local")] if kind == "PushSteps" else [],
    )  # fmt: skip


def time_steps(trainer: Trainer) -> Times:
    """Seconds of each step, by clock and of CPU, of the run, and inside the events of PushSteps."""
    from transformers import TrainerCallback

    from hubmerge import PushSteps

    starts: dict[int, tuple[float, float]] = {}
    inside: Counter[int] = Counter()

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            starts[state.global_step + 1] = _now()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if control.should_training_stop:
                starts[state.global_step + 1] = _now()

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, PushSteps):
            for event in _EVENTS:
                _time_event(callback, event, inside)
    trainer.callback_handler.callbacks.insert(0, Clock())
    begin = time.perf_counter()
    trainer.train()
    whole = time.perf_counter() - begin
    ended = [step for step in starts if step + 1 in starts]
    steps, cpu = (
        {step: starts[step + 1][clock] - starts[step][clock] for step in ended} for clock in (0, 1)
    )
    return {"steps": steps, "cpu": cpu, "whole": whole, "inside": inside}


def _now() -> tuple[float, float]:
    """Wall time, and CPU time of this thread, which other processes disturb less."""
    return time.perf_counter(), time.thread_time()


def _time_event(callback: Any, event: str, inside: Counter[int]) -> None:
    work = getattr(callback, event)

    def timed(args: Any, state: Any, control: Any, **objects: Any) -> None:
        begin = time.perf_counter()
        work(args, state, control, **objects)
        inside[state.global_step] += time.perf_counter() - begin

    setattr(callback, event, timed)


def summarize(kind: str, times: Times, alone: Times, steps: int, tags: int) -> dict[str, float]:
    """The ratios of one run to the median step of the Trainer alone, and to its whole run."""
    step_s = statistics.median(alone["steps"].values())
    every = max(1, round(steps / len(push_steps("2^k", steps))))
    saved = set(push_steps("2^k" if kind == "PushSteps" else str(every), steps))
    saved = set() if kind == "alone" else saved
    others = [s for step, s in times["steps"].items() if step not in saved]
    pushed = [s for step, s in times["steps"].items() if step in saved]
    cpu = [s for step, s in times["cpu"].items() if step not in saved]
    code = [s for step, s in times["inside"].items() if step not in saved and 0 < step < steps]
    return {
        "step": statistics.median(others) / step_s,
        "mean step": statistics.mean(others) / step_s,
        "CPU of step": statistics.median(cpu) / statistics.median(alone["cpu"].values()),
        "in its code": statistics.mean(code) / step_s if code else 0.0,
        "saving step": statistics.median(pushed) / step_s if pushed else 0.0,
        "whole run": times["whole"] / alone["whole"],
        "published": tags,
    }


def count_published(kind: str, name: str) -> int:
    """The tags of a run with PushSteps, the commits of steps of a Trainer."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    with suppress(huggingface_hub.errors.RepositoryNotFoundError):
        if kind == "PushSteps":
            return len(api.list_repo_refs(f"bench/{name}").tags)
        titles = [commit.title for commit in api.list_repo_commits(f"bench/{name}")]
        return sum(title.startswith("Training in progress") for title in titles)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--width", type=int, default=320)
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as text, lease(Path(text) / "hub") as server:
        # Read by huggingface_hub when it is imported, which has not happened yet.
        os.environ.update(HUBMERGE_HOME=text, HF_ENDPOINT=server.url, HF_TOKEN=server.token)
        time_steps(make_trainer("alone", "warm", 4, options.width, Path(text)))
        for number in range(options.rounds):
            done = {}
            for kind in KINDS:
                name = f"{kind.lower()}-{number}"
                done[kind] = time_steps(
                    make_trainer(kind, name, options.steps, options.width, Path(text))
                )
                published = count_published(kind, name)
                row = summarize(kind, done[kind], done["alone"], options.steps, published)
                rows[kind].append(row)
                print(kind, {key: round(value, 4) for key, value in row.items()}, flush=True)
    print(f"{'':12}" + "".join(f"{key:>13}" for key in rows["alone"][0]))
    for kind, many in rows.items():
        medians = [statistics.median(row[key] for row in many) for key in many[0]]
        print(f"{kind:12}" + "".join(f"{value:13.4f}" for value in medians))
    from benchmarks.cases import BUILD

    BUILD.mkdir(exist_ok=True)
    result = {"load": os.getloadavg(), "cores": os.cpu_count(), "rows": rows}
    (BUILD / "callback.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
