"""Three loops that train the same network on the same batches: hubmerge, bare PyTorch, Trainer."""

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
from hubmerge.training.inputs import TrainingCallbacks, TrainingData, ValidationTask
from hubmerge.training.loop import train
from hubmerge.training.row_order import RowOrder

Tick = Callable[[], None]
Loop = Callable[[Tick], list[float]]  # -> the loss of every step
Batch = dict[str, Tensor]


class RoundRobin:
    """Runs loops in one process, one step each in turn, so that noise affects all equally.

    A loop calls its tick before it starts and after every step; between two ticks no other loop
    runs. `seconds` is the CPU time of its thread from tick to tick: no loop waits, other programs
    do not count, and with one thread it is all of the loop's work.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._ring = deque(names)
        self._gates = {name: threading.Semaphore(0) for name in names}
        self._began: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in names}

    def start(self) -> None:
        self._gates[self._ring[0]].release()

    def tick(self, name: str) -> None:
        if name in self._began:
            self.seconds[name].append(time.thread_time() - self._began[name])
        self._ring.rotate(-1)
        self.start()
        self._gates[name].acquire()
        self._began[name] = time.thread_time()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait for the first turn; at the end let the others continue without this loop."""
        self._gates[name].acquire()
        try:
            yield
        finally:
            self._ring.remove(name)
            if self._ring:
                self.start()


def run_interleaved(loops: Mapping[str, Loop]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The seconds from the first tick to the last, and the losses, of each loop."""
    turns = RoundRobin(list(loops))

    def run(name: str) -> list[float]:
        with turns.turn(name):
            return loops[name](lambda: turns.tick(name))

    with ThreadPoolExecutor(len(loops)) as pool:
        running = {name: pool.submit(run, name) for name in loops}
        turns.start()
        losses = {name: future.result() for name, future in running.items()}
    return {name: sum(seconds) for name, seconds in turns.seconds.items()}, losses


def make_loops(case: Case, steps: int) -> dict[str, Loop]:
    """The loops over one case, each with its own network."""
    rows = case.training()
    order = RowOrder(len(rows), case.spec(steps).batch, seed=0)
    planned = [[row for _, row in order.rows_of_step(step)] for step in range(1, steps + 1)]
    return {  # Trainer is made first, as it resets the state of every Accelerator
        "Trainer": lambda tick: run_trainer(case, planned, rows, tick),
        "hubmerge": lambda tick: run_hubmerge(case, steps, rows, tick),
        "bare": lambda tick: run_bare(case, planned, rows, tick),
    }


def run_hubmerge(case: Case, steps: int, rows: Split, tick: Tick, workers: int = 0) -> list[float]:
    """The loop of `hubmerge train`, without saving and with a single row of validation."""
    learner, losses = case.learner(), []
    accelerator = Accelerator(cpu=True)
    training: Any = replace(learner, packs=True) if case.pack else learner
    fit = make_fit(training, case.spec(steps), accelerator)
    validation = load_split(case.task, "validation")
    single_row = Examples(
        learner.for_evaluation, replace(validation, rows=validation.rows.select(range(1)))
    )

    def track(values: Mapping[str, float], step: int) -> None:
        accelerator.log(dict(values), step)
        losses.extend([values["loss"]] if "loss" in values else [])

    callbacks = TrainingCallbacks(progress=lambda what, done, total: tick(), log_metrics=track)
    data = TrainingData(rows, (ValidationTask(learner, single_row),), workers)
    events = train(fit, data, (steps,), callbacks)
    next(events)  # the base is evaluated before the clock starts
    tick()
    for _ in events:
        pass
    return losses


def run_bare(case: Case, planned: list[list[int]], rows: Split, tick: Tick) -> list[float]:
    """A loop written by hand: rows are prepared before, and the loss is read at every step."""
    learner = case.learner()
    network, losses = learner.network, []
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case.lr, weight_decay=0.1, fused=True)
    examples = PreparedRows(learner, rows)
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


def run_trainer(case: Case, planned: list[list[int]], rows: Split, tick: Tick) -> list[float]:
    """transformers' Trainer with every optional feature switched off."""
    learner, losses = case.learner(), []

    class Ticking(TrainerCallback):
        def on_train_begin(self, *values: Any, **more: Any) -> None:
            tick()

        def on_step_end(self, *values: Any, **more: Any) -> None:
            tick()

    class Ordered(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return [row for numbers in planned for row in numbers]

        def compute_loss(
            self, model: nn.Module, inputs: Batch, *values: Any, **more: Any
        ) -> Tensor:
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
        examples = PreparedRows(learner, rows)
        trainer = Ordered(learner.network, options, collate, examples, callbacks=[Ticking()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return losses


def evaluation_batches(learner: Learner, rows: Split) -> list[list[dict[str, Any]]]:
    """Evaluation rows in batches of hubmerge's sizes; with all choices for a rank task."""
    examples = prepare_rows(learner, rows)
    if rows.task.spec.kind == "rank":
        choices = learner.encoder.pairs.tokenizer(text_target=list(rows.task.spec.choices))[
            "input_ids"
        ]
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
    """The accuracy, as one would compute it by hand."""
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
    """The choice with the highest log-probability; every row has the same number of choices."""
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
    losses_per_token = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses_per_token.view(len(rows), many, -1).sum(dim=-1).argmin(dim=-1)


def mean_loss(network: nn.Module, batch: Batch) -> Tensor:
    """The loss of a classifier, or of a transformers language model, which returns its own."""
    if "labels" in batch:
        return network.model(**batch).loss
    return cross_entropy(_logits(network, batch), batch["label"])


def _logits(network: nn.Module, batch: Batch) -> Tensor:
    inputs = (batch[name] for name in ("image", "input_ids", "attention_mask") if name in batch)
    return network(*inputs)


class PreparedRows(torch.utils.data.Dataset):
    """Rows that are all prepared when the first one is read."""

    def __init__(self, learner: Learner, rows: Split) -> None:
        self._learner, self._rows = learner, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._kept[row]

    @cached_property
    def _kept(self) -> Any:
        return prepare_rows(self._learner, self._rows)


class CroppedImages(torch.utils.data.Dataset):
    """Images in memory, cropped at random whenever they are read."""

    def __init__(self, pairs: list[tuple[Any, int]], crop: Callable[[Any], Tensor]) -> None:
        self._pairs, self._crop = pairs, crop

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: int) -> dict[str, Any]:
        picture, label = self._pairs[row]
        return {"image": self._crop(picture), "label": label}


def prepare_rows(learner: Any, rows: Split) -> Any:
    """Every row as the other loops use it: tensors, or images that are cropped at random."""
    kind, examples = rows.task.spec.kind, [rows.example(row) for row in range(len(rows))]
    if kind == "image" and learner.augmented_transform is not None:
        return CroppedImages(
            [(picture.copy(), label) for picture, label in examples], learner.augmented_transform
        )
    if kind == "image":
        return [
            {"image": learner.transform(picture), "label": label} for picture, label in examples
        ]
    if kind == "text":
        texts, labels = zip(*examples, strict=True)
        longest = learner.max_tokens
        ids = learner.tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        return [
            {"input_ids": torch.tensor(row), "label": label}
            for row, label in zip(ids, labels, strict=True)
        ]
    tokenizer = learner.encoder.pairs.tokenizer
    prompts = tokenizer([example.prompt for example in examples], truncation=True)["input_ids"]
    targets = tokenizer(text_target=[example.target for example in examples])["input_ids"]
    return [
        {"input_ids": torch.tensor(prompt), "labels": torch.tensor(target)}
        for prompt, target in zip(prompts, targets, strict=True)
    ]


def collate(rows: list[dict[str, Any]]) -> Batch:
    """Rows as one batch; texts are padded with 0, as in both tokenizers, to the longest one."""
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
