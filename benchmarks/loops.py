"""Three loops that train the same network on the same batches: ours, a bare one, and Trainer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.cases import Case
from hubmerge.evaluation import Examples
from hubmerge.learners.learner import Learner
from hubmerge.tasks.data import Split, load_split
from hubmerge.training.fit import make_fit
from hubmerge.training.inputs import Data, Watch, Watched
from hubmerge.training.loop import train
from hubmerge.training.row_order import Order

Tick = Callable[[], None]
Loop = Callable[[Tick], list[float]]  # -> the loss of every step
Batch = dict[str, Tensor]


class Turns:
    """Loops in one process that make one step each in turn, so that noise hits all alike.

    A loop calls its tick when it is about to begin and after every step; between two ticks none of
    the others runs. `seconds` are what its thread computed from tick to tick: nothing in a loop
    waits, other programs on the machine do not count, and with one thread that is all of its work.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._ring = deque(names)
        self._gates = {name: threading.Semaphore(0) for name in names}
        self._began: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in names}

    def begin(self) -> None:
        self._gates[self._ring[0]].release()

    def tick(self, name: str) -> None:
        if name in self._began:
            self.seconds[name].append(time.thread_time() - self._began[name])
        self._ring.rotate(-1)
        self.begin()
        self._gates[name].acquire()
        self._began[name] = time.thread_time()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait for the first turn; at the end let the others go on without this one."""
        self._gates[name].acquire()
        try:
            yield
        finally:
            self._ring.remove(name)
            if self._ring:
                self.begin()


def side_by_side(loops: Mapping[str, Loop]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds from the first tick to the last, and losses, of each loop."""
    turns = Turns(list(loops))

    def run(name: str) -> list[float]:
        with turns.turn(name):
            return loops[name](lambda: turns.tick(name))

    with ThreadPoolExecutor(len(loops)) as pool:
        running = {name: pool.submit(run, name) for name in loops}
        turns.begin()
        losses = {name: future.result() for name, future in running.items()}
    return {name: sum(seconds) for name, seconds in turns.seconds.items()}, losses


def loops(case: Case, steps: int) -> dict[str, Loop]:
    """The loops over one case, each with a network of its own."""
    rows = case.training()
    order = Order(len(rows), case.spec(steps).batch, seed=0)
    planned = [[row for _, row in order.step(step)] for step in range(1, steps + 1)]
    return {  # Trainer is made first, as it throws the state of every Accelerator away
        "Trainer": lambda tick: by_trainer(case, planned, rows, tick),
        "hubmerge": lambda tick: ours(case, steps, rows, tick),
        "bare": lambda tick: bare(case, planned, rows, tick),
    }


def ours(case: Case, steps: int, rows: Split, tick: Tick, workers: int = 0) -> list[float]:
    """As `hubmerge train` has it, with nothing saved and a single row of validation."""
    learner, losses = case.learner(), []
    accelerator = Accelerator(cpu=True)
    fit = make_fit(learner, case.spec(steps), accelerator)
    validation = load_split(case.task, "validation")
    one = Examples(
        learner.for_evaluation, replace(validation, rows=validation.rows.select(range(1)))
    )

    def track(said: Mapping[str, float], step: int) -> None:
        accelerator.log(dict(said), step)
        losses.extend([said["loss"]] if "loss" in said else [])

    watch = Watch(progress=lambda what, done, total: tick(), track=track)
    line = train(fit, Data(rows, (Watched(learner, one),), workers), (steps,), watch)
    next(line)  # the base is measured before the clock starts
    tick()
    for _ in line:
        pass
    return losses


def bare(case: Case, planned: list[list[int]], rows: Split, tick: Tick) -> list[float]:
    """What one would write by hand: rows prepared beforehand and kept, the loss read each step."""
    learner = case.learner()
    network, losses = learner.network, []
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case.lr, weight_decay=0.1, fused=True)
    examples = Prepared(learner, rows)
    tick()
    network.train()
    for numbers in planned:
        batch = collate([examples[number] for number in numbers])
        loss = mean_loss(network, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        tick()
    return losses


def by_trainer(case: Case, planned: list[list[int]], rows: Split, tick: Tick) -> list[float]:
    """transformers' Trainer, with all that can be switched off switched off."""
    learner, losses = case.learner(), []

    class Ticking(TrainerCallback):
        def on_train_begin(self, *said: Any, **more: Any) -> None:
            tick()

        def on_step_end(self, *said: Any, **more: Any) -> None:
            tick()

    class Ordered(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return [row for numbers in planned for row in numbers]

        def compute_loss(self, model: nn.Module, inputs: Batch, *said: Any, **more: Any) -> Tensor:
            loss = mean_loss(model, inputs)
            losses.append(loss.item())
            return loss

    with TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder,
            max_steps=len(planned),
            per_device_train_batch_size=len(planned[0]),
            learning_rate=case.lr,
            weight_decay=0.1,
            max_grad_norm=1.0,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            log_level="error",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        examples = Prepared(learner, rows)
        trainer = Ordered(learner.network, options, collate, examples, callbacks=[Ticking()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return losses


def evaluated(learner: Learner, rows: Split) -> list[list[dict[str, Any]]]:
    """Rows for evaluation as batches of the sizes that we evaluate; of a rank task all choices."""
    examples = prepared(learner, rows)
    if rows.task.spec.kind == "rank":
        choices = learner.tokenizer(text_target=list(rows.task.spec.choices))["input_ids"]
        answers = [rows.example(row).answer for row in range(len(rows))]
        labels = [torch.tensor(choice) for choice in choices]
        examples = [
            {"input_ids": example["input_ids"], "choices": labels, "label": answer}
            for example, answer in zip(examples, answers, strict=True)
        ]
    at_once = {"image": 256, "text": 64, "rank": 16}[rows.task.spec.kind]
    return [examples[start : start + at_once] for start in range(0, len(examples), at_once)]


@torch.inference_mode()
def bare_accuracy(learner: Learner, batches: list[list[dict[str, Any]]]) -> float:
    """Share of right answers, as one would write it by hand."""
    network, right, count = learner.network.eval(), 0, 0
    for rows in batches:
        batch = collate(rows)
        if "choices" in rows[0]:
            predicted = _likeliest(network.model, batch, rows)
        else:
            predicted = _logits(network, batch).argmax(dim=-1)
        right += int((predicted == batch["label"]).sum())
        count += len(rows)
    return right / count


def _likeliest(model: nn.Module, batch: Batch, rows: list[dict[str, Any]]) -> Tensor:
    """The choice of the highest log-probability; every row has the same number of choices."""
    choices = [choice for row in rows for choice in row["choices"]]
    labels = pad_sequence(choices, batch_first=True, padding_value=-100)
    many = len(rows[0]["choices"])
    mask = batch["attention_mask"]
    hidden = model.encoder(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    logits = model(
        encoder_outputs=BaseModelOutput(hidden.repeat_interleave(many, 0)),
        attention_mask=mask.repeat_interleave(many, 0),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
    ).logits
    told = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return told.view(len(rows), many, -1).sum(dim=-1).argmin(dim=-1)


def mean_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Of a classifier, or of a transformers language model, which knows its own."""
    if "labels" in batch:
        return network.model(**batch).loss
    return cross_entropy(_logits(network, batch), batch["label"])


def _logits(network: nn.Module, batch: Batch) -> Tensor:
    inputs = (batch[name] for name in ("image", "input_ids", "attention_mask") if name in batch)
    return network(*inputs)


class Prepared(torch.utils.data.Dataset):
    """Rows that are prepared, all of them, when the first is asked for."""

    def __init__(self, learner: Learner, rows: Split) -> None:
        self._learner, self._rows = learner, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._kept[row]

    @cached_property
    def _kept(self) -> Any:
        return prepared(self._learner, self._rows)


class Cropped(torch.utils.data.Dataset):
    """Pictures in memory, cropped anew whenever they are asked for."""

    def __init__(self, pairs: list[tuple[Any, int]], crop: Callable[[Any], Tensor]) -> None:
        self._pairs, self._crop = pairs, crop

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: int) -> dict[str, Any]:
        picture, label = self._pairs[row]
        return {"image": self._crop(picture), "label": label}


def prepared(learner: Any, rows: Split) -> Any:
    """Every row as the rivals take it: tensors, but for pictures that are cropped at random."""
    kind, examples = rows.task.spec.kind, [rows.example(row) for row in range(len(rows))]
    if kind == "image" and learner.augmented is not None:
        return Cropped([(picture.copy(), label) for picture, label in examples], learner.augmented)
    if kind == "image":
        return [{"image": learner.plain(picture), "label": label} for picture, label in examples]
    longest, tokenizer = learner.max_tokens, learner.tokenizer
    if kind == "text":
        texts, labels = zip(*examples, strict=True)
        ids = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        return [
            {"input_ids": torch.tensor(row), "label": label}
            for row, label in zip(ids, labels, strict=True)
        ]
    prompts = tokenizer([example.prompt for example in examples], truncation=True)["input_ids"]
    targets = tokenizer(text_target=[example.target for example in examples])["input_ids"]
    return [
        {"input_ids": torch.tensor(prompt), "labels": torch.tensor(target)}
        for prompt, target in zip(prompts, targets, strict=True)
    ]


def collate(rows: list[dict[str, Any]]) -> Batch:
    """Rows as one batch; texts padded to the longest of them. Both tokenizers pad with 0."""
    batch: Batch = {}
    if "image" in rows[0]:
        batch["image"] = torch.stack([row["image"] for row in rows])
    if "label" in rows[0]:
        batch["label"] = torch.tensor([row["label"] for row in rows])
    if "input_ids" in rows[0]:
        ids = [row["input_ids"] for row in rows]
        lengths = torch.tensor([len(row) for row in ids])
        batch["input_ids"] = pad_sequence(ids, batch_first=True)
        longest = batch["input_ids"].shape[1]
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    if "labels" in rows[0]:
        labels = [row["labels"] for row in rows]
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=-100)
    return batch
