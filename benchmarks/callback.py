"""The cost of PushSteps beside a Trainer alone and beside its own `hub_strategy="every_save"`.

A small Llama is trained by three Trainers on one thread, with an embedded Hub: alone, with
PushSteps at steps 2^k, and with push_to_hub and as many saves at equal distances. They take turns,
step by step: a busy machine slows all three of them, and so does what one of them pushes in the
background. A step is timed from its beginning to the beginning of the next one, so that everything
between them counts. All numbers are ratios to the same step of the Trainer alone: "step" is the
median and "mean" the mean over steps that are not saved, "saving step" the median over those that
are; "in its code" is the time inside the events of PushSteps at steps that are not saved. A Trainer
skips a push while another one runs, which "published" shows.

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
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubmerge.server import lease
from hubmerge.training.schedule import push_steps

if TYPE_CHECKING:
    from transformers import Trainer

KINDS = ("alone", "PushSteps", "every_save")
_EVENTS = ("on_train_begin", "on_step_begin", "on_step_end", "on_epoch_end", "on_train_end")
Row = dict[str, float]


def make_model(width: int) -> Any:
    """A Llama with random weights: 11.9 million parameters at the width 320."""
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
        own = {"save_strategy": "steps", "save_steps": int(_save_rule(steps)), "push_to_hub": True,
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


class Turns:
    """Lets one of several threads work at a time, in rotation."""

    def __init__(self, names: Sequence[str]) -> None:
        self._waiting, self._changed = list(names), threading.Condition()

    def take(self, name: str) -> None:
        """Wait until it is the turn of `name`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] == name)

    def give(self, name: str, is_last: bool = False) -> None:
        """End the turn of `name`, which gets another one unless it was the last."""
        with self._changed:
            self._waiting.remove(name)
            self._waiting += [] if is_last else [name]
            self._changed.notify_all()


class Clock:
    """The seconds of each step of a Trainer, and inside the events of PushSteps by step."""

    def __init__(self, trainer: Trainer, name: str, turns: Turns) -> None:
        from transformers import TrainerCallback

        from hubmerge import PushSteps

        self.steps: dict[int, float] = {}
        self.inside: Counter[int] = Counter()
        clock, begin = self, 0.0

        class TakeTurns(TrainerCallback):
            """The first callback: a step ends where the next one begins."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                nonlocal begin
                self._end(state.global_step)
                turns.give(name)
                turns.take(name)
                begin = time.perf_counter()

            def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if control.should_training_stop:
                    self._end(state.global_step)

            def _end(self, step: int) -> None:
                if step:
                    clock.steps[step] = time.perf_counter() - begin

        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, PushSteps):
                for event in _EVENTS:
                    _time_event(callback, event, self.inside)
        trainer.callback_handler.callbacks.insert(0, TakeTurns())


def time_in_turns(trainers: Mapping[str, Trainer]) -> dict[str, Clock]:
    """Train all of them, one step of each after the other."""
    turns = Turns(list(trainers))
    clocks = {name: Clock(trainer, name, turns) for name, trainer in trainers.items()}

    def train(name: str) -> None:
        turns.take(name)
        try:
            trainers[name].train()
        finally:
            turns.give(name, is_last=True)

    threads = [threading.Thread(target=train, args=(name,)) for name in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clocks


def _time_event(callback: Any, event: str, inside: Counter[int]) -> None:
    work = getattr(callback, event)

    def timed(args: Any, state: Any, control: Any, **objects: Any) -> None:
        begin = time.perf_counter()
        work(args, state, control, **objects)
        inside[state.global_step] += time.perf_counter() - begin

    setattr(callback, event, timed)


def summarize(kind: str, clock: Clock, alone: Clock, steps: int, published: int) -> Row:
    """The ratios of a run to the steps of the Trainer alone."""
    saved = set(push_steps("2^k" if kind == "PushSteps" else _save_rule(steps), steps))
    saved = set() if kind == "alone" else saved
    ratios = {step: seconds / alone.steps[step] for step, seconds in clock.steps.items()}
    others = [ratio for step, ratio in ratios.items() if step not in saved]
    code = [clock.inside[step] / alone.steps[step] for step in ratios if step not in saved]
    return {
        "step": statistics.median(others),
        "mean": statistics.mean(others),
        "in its code": statistics.median(code),
        "saving step": statistics.median([ratios[step] for step in saved]) if saved else 1.0,
        "published": published,
    }


def _save_rule(steps: int) -> str:
    """As many saves at equal distances as PushSteps makes."""
    return str(max(1, round(steps / len(push_steps("2^k", steps)))))


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
    rows: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as text, lease(Path(text) / "hub") as server:
        # Read by huggingface_hub when it is imported, which has not happened yet.
        os.environ.update(HUBMERGE_HOME=text, HF_ENDPOINT=server.url, HF_TOKEN=server.token)
        for number in range(options.rounds):
            names = {kind: f"{kind.lower()}-{number}" for kind in KINDS}
            clocks = time_in_turns({
                kind: make_trainer(kind, name, options.steps, options.width, Path(text))
                for kind, name in names.items()
            })  # fmt: skip
            for kind in KINDS:
                published = count_published(kind, names[kind])
                row = summarize(kind, clocks[kind], clocks["alone"], options.steps, published)
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
