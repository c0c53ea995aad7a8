"""Language models against transformers, one choice at a time, and against numbers by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM
from transformers import T5ForConditionalGeneration as T5

from hubmerge.errors import CheckpointError, DataError
from hubmerge.learners.learner import Batch
from hubmerge.learners.ranking import LanguageLearner, Reader, by_prompt
from hubmerge.tasks.data import Paired, Ranked
from tests.learners.worlds import batch_of, counting, opened, scores

Folders = dict[str, Path]
FAMILIES = {"t5": T5, "gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}
QUESTIONS = [
    Ranked("Is this true?", ("Yes", "No"), 0),
    Ranked("the cat sat on the", ("mat and the dog did not", "dog", "good films are fun"), 1),
    Ranked("question: which of the two? answer:", ("the first", "one, two or three"), 1),
    Ranked("a", ("b", "the digit", "c", "a photo of the digit"), 3),
]
close = pytest.approx


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def learner(folders: Folders, family: str) -> LanguageLearner:
    made: LanguageLearner = opened(folders[family], "rank")[1]
    return made


@torch.no_grad()
def alone(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """One choice after one prompt, without padding: the sum over its tokens and the end's."""
    asked = tokenizer(prompt)["input_ids"]
    # A decoder goes on after the prompt's last word.
    text = choice if model.config.is_encoder_decoder else f" {choice}"
    said = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id]
        out = model(input_ids=torch.tensor([asked]), decoder_input_ids=torch.tensor([start + said]))
        ahead = out.logits[0, :-1]
    else:
        out = model(input_ids=torch.tensor([asked + said]))
        ahead = out.logits[0, len(asked) - 1 : -1]
    told = ahead.log_softmax(dim=-1)
    return sum(told[place, token].item() for place, token in enumerate(said))


@pytest.fixture(scope="module")
def expected(folders: Folders, family: str) -> list[list[float]]:
    """The score of every choice of every question, one after another."""
    model = FAMILIES[family].from_pretrained(folders[family]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    return [[alone(model, tokenizer, q.prompt, one) for one in q.choices] for q in QUESTIONS]


def close_to(expected: list[list[float]]) -> list[Any]:
    return [close(each, abs=2e-4) for each in expected]


def test_a_choice_scores_the_sum_of_its_log_probabilities(
    learner: LanguageLearner, expected: list[list[float]]
) -> None:
    assert scores(learner, *QUESTIONS) == close_to(expected)
    # Longer choices lose: nothing is divided by their length.
    assert expected[3][3] < expected[3][0]


@given(st.permutations(range(4)), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_a_score_does_not_feel_what_else_is_in_its_batch(
    learner: LanguageLearner, expected: list[list[float]], order: list[int], count: int
) -> None:
    """Prompts and choices of other lengths, and other numbers of choices."""
    chosen = order[:count]
    found = scores(learner, *(QUESTIONS[number] for number in chosen))
    assert found == close_to([expected[number] for number in chosen])


def test_the_answer_is_the_likeliest_choice(
    learner: LanguageLearner, expected: list[list[float]]
) -> None:
    predictions, references = learner.answers(learner.network, batch_of(learner, *QUESTIONS))
    assert predictions.tolist() == [[each.index(max(each))] for each in expected]
    assert references.tolist() == [[0], [1], [1], [3]]


def test_sharing_the_encoder_changes_no_score(folders: Folders) -> None:
    model, shared = opened(folders["t5"], "rank")
    again = dataclasses.replace(shared, network=Reader(model.runs, True, shares_encoder=False))
    for ours, theirs in zip(scores(shared, *QUESTIONS), scores(again, *QUESTIONS), strict=True):
        assert ours == close(theirs, abs=1e-4)


def encodings(network: Reader, batch: Batch) -> list[int]:
    """How many prompts the encoder reads at each of its calls."""
    seen: list[int] = []
    encoder: Any = network.get_submodule("model.encoder")
    hook = encoder.register_forward_hook(
        lambda _, args, said: seen.append(len(said.last_hidden_state))
    )
    network(*(batch[name] for name in ("input_ids", "attention_mask", "labels", "owner")))
    hook.remove()
    return seen


def test_a_prompt_is_encoded_once_however_many_choices_it_has(folders: Folders) -> None:
    model, learner = opened(folders["t5"], "rank")
    batch = batch_of(learner, *QUESTIONS)
    assert encodings(learner.network, batch) == [4]
    assert encodings(Reader(model.runs, True, shares_encoder=False), batch) == [11]


def test_the_loss_is_the_right_choices_alone(
    learner: LanguageLearner, expected: list[list[float]]
) -> None:
    batch = learner.collate([learner.for_training(question, 0) for question in QUESTIONS])
    right = [each[q.answer] for q, each in zip(QUESTIONS, expected, strict=True)]
    assert learner.loss(learner.network, batch).item() == close(-sum(right), abs=1e-3)
    tokens = [len(learner.target_ids(question.target)) for question in QUESTIONS]
    assert learner.count(batch) == sum(tokens)


def test_the_mean_loss_is_transformers_own(
    folders: Folders, family: str, learner: LanguageLearner
) -> None:
    pairs = [Paired(question.prompt, question.target) for question in QUESTIONS]
    batch = learner.collate([learner.for_training(pair, 0) for pair in pairs])
    ours = learner.loss(learner.network, batch) / learner.count(batch)
    model: Any = FAMILIES[family].from_pretrained(folders[family]).eval()
    asked = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    theirs = model(**asked).loss
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ours.backward()
    theirs.backward()
    names = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert names
    for name in names:
        own = learner.network.model.get_parameter(name)
        torch.testing.assert_close(own.grad, model.get_parameter(name).grad, atol=1e-5, rtol=1e-4)
        own.grad = None


# Which choice is likeliest.


def ranked(*each: list[float]) -> list[int]:
    owner = [number for number, one in enumerate(each) for _ in one]
    table = by_prompt(torch.tensor(list(itertools.chain(*each))), torch.tensor(owner))
    found = table.argmax(dim=-1, keepdim=True)
    assert found.shape == (len(each), 1)
    return found.flatten().tolist()


def test_the_first_of_equals_wins() -> None:
    assert ranked([-3.0, -2.0, -2.0], [-1.0, -1.0], [-9.0, -9.0, -9.0, -1.0]) == [1, 0, 3]


@given(st.lists(st.lists(st.floats(-1e4, 0, width=32), min_size=1, max_size=6), min_size=1))
def test_the_likeliest_is_that_of_its_own_row(each: list[list[float]]) -> None:
    assert ranked(*each) == [one.index(max(one)) for one in each]


# What is read of prompts and targets, in a world where words are digits and 9 is the end.


def test_labels_begin_behind_the_prompt() -> None:
    batch = batch_of(counting(), Ranked("1 2 3", ("4", "7 8"), 1), Ranked("5", ("6 7",), 0))
    assert batch["input_ids"].tolist() == [
        [1, 2, 3, 4, 9, 9],
        [1, 2, 3, 7, 8, 9],
        [5, 6, 7, 9, 9, 9],
    ]
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 6, 4]
    assert batch["labels"].tolist() == [
        [-100] * 3 + [4, 9, -100],
        [-100] * 3 + [7, 8, 9],
        [-100, 6, 7, 9, -100, -100],
    ]
    assert (batch["owner"].tolist(), batch["answer"].tolist()) == ([0, 0, 1], [1, 0])


def test_scores_by_hand() -> None:
    """After n the counter gives n + 1 the logit 2, and each of nine others 0."""
    sure, other = 2 - math.log(math.exp(2) + 9), -math.log(math.exp(2) + 9)
    asked = Ranked("1 2 3", ("4", "4 5 6 7 8", "5"), 0)
    # "4" and the end; five that follow and the end, which is 9 and follows too; neither.
    assert scores(counting(), asked) == [close([sure + other, 6 * sure, 2 * other], abs=1e-5)]
    # -3.6 beats -4.8; a mean over tokens would have it the other way, -1.8 against -0.8.
    predictions, _ = counting().answers(counting().network, batch_of(counting(), asked))
    assert predictions.tolist() == [[0]]


def test_token_accuracy_by_hand() -> None:
    learner = counting()
    batch = batch_of(learner, Paired("2 3", "4 5 7"), Paired("0", "1"))
    predictions, references = learner.answers(learner.network, batch)
    # 4 and 5 are foreseen; then 6 for 7, and 8 for the end. 1 is, and 2 is said for the end.
    assert references.tolist() == [[-1, 4, 5, 7, 9], [1, 9, -1, -1, -1]]
    assert predictions.tolist() == [[-1, 4, 5, 6, 8], [1, 2, -1, -1, -1]]
    assert learner.count(batch) == 6


def test_answers_that_are_no_numbers_are_no_choice() -> None:
    learner = counting()

    def spoiled(*_: object) -> Any:
        return torch.full((2, 5), torch.nan), torch.zeros(2, 5).long()

    network: Any = spoiled
    with pytest.raises(CheckpointError, match="answers are not numbers"):
        learner.answers(network, batch_of(learner, Ranked("1 2 3", ("4", "5"), 0)))


def test_a_decoder_keeps_the_end_of_a_prompt_that_is_too_long() -> None:
    learner = counting()
    example = learner.for_evaluation(Paired("0 1 2 3 4 5 6 7 8 0 1 2", "3"))
    assert example["input_ids"].tolist() == [4, 5, 6, 7, 8, 0, 1, 2]
    assert learner.is_cut("0 1 2 3 4 5 6 7 8")
    assert not learner.is_cut("0 1 2 3 4 5 6 7")


def test_a_t5_keeps_the_beginning_and_ends_its_text(folders: Folders) -> None:
    _, learner = opened(folders["t5"], "rank", max_tokens=5)
    prompt = "the cat sat on the mat and the dog did not"
    whole = learner.tokenizer(prompt)["input_ids"]
    read = learner.for_evaluation(Paired(prompt, "a"))["input_ids"].tolist()
    assert len(whole) > 5
    assert read == [*whole[:4], learner.tokenizer.eos_token_id]
    assert learner.is_cut(prompt)
    assert not learner.is_cut("a")


@pytest.mark.parametrize("read", ["for_training", "for_evaluation"])
def test_an_answer_that_would_be_cut_is_refused(read: str) -> None:
    learner = counting()
    assert len(learner.target_ids("1 2 3 4 5 6 7")) == 8
    asked = Ranked("0", ("1 2 3 4 5 6 7 8", "1"), 0)
    with pytest.raises(DataError, match="has 9 tokens, and only 8 would be read") as refused:
        learner.for_evaluation(asked) if read == "for_evaluation" else learner.for_training(
            asked, 0
        )
    assert "Raise `max_tokens:`" in refused.value.hint


# Tokenizers that frame what they read: <s> is 0 here, and </s> is 9.


def framing(single: str, max_tokens: int = 8) -> LanguageLearner:
    learner = counting()
    template = processors.TemplateProcessing(single, special_tokens=[("0", 0), ("9", 9)])
    learner.tokenizer.backend_tokenizer.post_processor = template
    return dataclasses.replace(learner, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("single", "prompt"), [("0 $A", [0, 1, 2]), ("0 $A 9", [0, 1, 2]), ("$A 9", [1, 2]),
                           ("9 $A", [9, 1, 2])]
)  # fmt: skip
def test_a_decoder_reads_on_from_an_open_end(single: str, prompt: list[int]) -> None:
    """A text begins as the tokenizer has it, and ends once: behind the target."""
    batch = batch_of(framing(single), Paired("1 2", "3 4"))
    assert batch["input_ids"].tolist() == [[*prompt, 3, 4, 9]]
    assert batch["labels"].tolist() == [[-100] * len(prompt) + [3, 4, 9]]


@pytest.mark.parametrize("single", ["0 $A", "0 $A 9"])
def test_the_beginning_of_sequence_survives_the_cut(single: str) -> None:
    learner = framing(single, max_tokens=4)
    assert learner.for_evaluation(Paired("1 2 3 4 5 6", "7"))["input_ids"].tolist() == [0, 4, 5, 6]
    assert learner.for_evaluation(Paired("1 2 3", "7"))["input_ids"].tolist() == [0, 1, 2, 3]


def test_words_that_look_like_a_frame_are_words() -> None:
    read = framing("0 $A 9").for_evaluation(Paired("0 9 1 9 0", "7"))["input_ids"]
    assert read.tolist() == [0, 0, 9, 1, 9, 0]


def test_a_decoder_reads_no_more_than_it_has_positions_for(folders: Folders) -> None:
    learner = dataclasses.replace(opened(folders["gpt2"], "rank")[1], max_tokens=100, positions=12)
    example = learner.for_training(Ranked("one two three " * 20, ("two", "one"), 0), 0)
    assert len(example["input_ids"]) + len(example["targets"][0]) == 12
    with pytest.raises(DataError, match="only 11 would be read"):
        learner.target_ids("three " * 20)
