"""Generated answers: those of transformers one prompt at a time, cut where they are stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hubmerge.errors import CheckpointError, DataError
from hubmerge.learners.generation import GenerationLimits, StopStrings, generate_answers
from hubmerge.learners.ranking import LanguageLearner
from hubmerge.tasks.examples import ChatExample, TargetExample, TextExample
from hubmerge.tasks.messages import Message
from tests.learners.builders import load_learner
from tests.models.language_families import write_family

PROMPTS = [
    TargetExample("Question: is this true? Answer:", "Yes"),
    TargetExample("The capital of France is", "Paris"),
    TargetExample("one, two", "three"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["llama2", "qwen", "gemma", "gpt2", "t5"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model and its learner."""
    folder = write_family(tmp_path_factory.mktemp("families") / request.param, request.param)
    return load_learner(folder, "target", max_tokens=64)


def texts(learner: LanguageLearner, *examples: Any, **limits: Any) -> list[str]:
    answers = generate_answers(learner, learner.network, examples, GenerationLimits(**limits), CPU)
    return [answer.text for answer in answers]


def test_a_batch_gives_what_transformers_gives_one_by_one(opened: Any) -> None:
    model, learner = opened
    tokenizer, expected = model.tokenizer, []
    for example in PROMPTS:
        ids = learner.encoder.prompt_and_answer(example)[0]
        output = model.module.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False,
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        new = output[0, 1:] if learner.is_seq2seq else output[0, len(ids) :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    assert texts(learner, *PROMPTS, max_new_tokens=12) == expected


def test_a_text_ends_before_the_first_stop_string(opened: Any) -> None:
    _, learner = opened
    whole = texts(learner, *PROMPTS, max_new_tokens=12)
    stop = whole[0].strip()[1:3]
    assert stop
    cut = texts(learner, *PROMPTS, max_new_tokens=12, stop=(stop, "never"))
    assert cut == [text.partition(stop)[0] for text in whole]


@pytest.mark.parametrize("stop", ["\n\n", "is", "e,", "?", "é", "a ", "never"])
def test_a_row_stops_with_the_token_that_completes_a_stop_string(opened: Any, stop: str) -> None:
    tokenizer = opened[0].tokenizer
    ids = tokenizer("This is a café,\n\nis it? a b", add_special_tokens=False)["input_ids"]
    decoded = [tokenizer.decode(ids[:count]) for count in range(1, len(ids) + 1)]
    criterion = StopStrings(tokenizer, (stop,), 0, skip_special=False)
    stopped = [bool(criterion(torch.tensor([ids[:n]]), None)) for n in range(1, len(ids) + 1)]
    assert stopped == [any(stop in text for text in decoded[: n + 1]) for n in range(len(ids))]


@pytest.mark.parametrize(
    ("token", "text", "is_finished"), [("<end_of_turn>", "", True), ("a", "aaaaa", False)]
)
def test_conversations_end_as_their_template_ends_answers(
    tmp_path: Path, token: str, text: str, is_finished: bool
) -> None:
    """The end of a turn is no end of sequence here, but answers are trained to end with it."""
    model, learner = load_learner(write_family(tmp_path / "gemma", "gemma"), "target")
    turns = (Message("user", "Is it?"), Message("assistant", "Yes"))
    end = learner.encoder.answer_end(ChatExample(turns))
    assert model.tokenizer.decode([end]) == "<end_of_turn>" != model.tokenizer.eos_token
    always_predict(model.module, model.tokenizer.convert_tokens_to_ids(token))
    limits = GenerationLimits(5)
    answers = generate_answers(learner, learner.network, [ChatExample(turns)], limits, CPU)
    assert [(answer.text, answer.is_finished) for answer in answers] == [(text, is_finished)]


def always_predict(module: Any, token: int) -> None:
    """Let a decoder predict this token, whatever it reads."""
    head = module.get_output_embeddings()
    constant = torch.nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias.zero_()
        constant.bias[token] = 1.0
    module.set_output_embeddings(constant)


def test_prompts_leave_room_for_what_is_generated(tmp_path: Path) -> None:
    model, learner = load_learner(write_family(tmp_path / "gpt2", "gpt2"), "target", max_tokens=900)
    positions = learner.encoder.max_positions
    long = TargetExample("one, two, three = 1 2 3 " * 100, "12")
    ids, _ = learner.encoder.prompt_and_answer(long, 20)
    assert len(ids) == positions - 20
    assert len(texts(learner, long, max_new_tokens=20)) == 1
    assert model.module.config.n_positions == positions


def test_generation_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    model, learner = load_learner(write_family(tmp_path / "qwen", "qwen"), "target")
    with pytest.raises(DataError, match="A plain text has no answer"):
        texts(learner, TextExample("The cat sat."), max_new_tokens=2)
    with torch.no_grad():
        model.module.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        texts(learner, *PROMPTS, max_new_tokens=2)
