"""Language models compared with transformers, one choice at a time, and with values by hand."""

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
from hubmerge.learners.ranking import LanguageLearner, TargetScorer, scores_by_prompt
from hubmerge.tasks.data import RankExample, TargetExample
from tests.learners.builders import batch_of, counting_learner, load_learner, scores

Folders = dict[str, Path]
FAMILIES = {"t5": T5, "gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}
QUESTIONS = [
    RankExample("Is this true?", ("Yes", "No"), 0),
    RankExample("the cat sat on the", ("mat and the dog did not", "dog", "good films are fun"), 1),
    RankExample("question: which of the two? answer:", ("the first", "one, two or three"), 1),
    RankExample("a", ("b", "the digit", "c", "a photo of the digit"), 3),
]
close = pytest.approx


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def learner(folders: Folders, family: str) -> LanguageLearner:
    result: LanguageLearner = load_learner(folders[family], "rank")[1]
    return result


@torch.no_grad()
def reference_score(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """The score of one choice without padding: the sum over its tokens and end of sequence."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    # A decoder continues after the prompt's last word.
    text = choice if model.config.is_encoder_decoder else f" {choice}"
    target_ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id]
        output = model(
            input_ids=torch.tensor([prompt_ids]),
            decoder_input_ids=torch.tensor([start + target_ids]),
        )
        logits = output.logits[0, :-1]
    else:
        output = model(input_ids=torch.tensor([prompt_ids + target_ids]))
        logits = output.logits[0, len(prompt_ids) - 1 : -1]
    log_probs = logits.log_softmax(dim=-1)
    return sum(log_probs[position, token].item() for position, token in enumerate(target_ids))


@pytest.fixture(scope="module")
def expected(folders: Folders, family: str) -> list[list[float]]:
    """The reference score of every choice of every question."""
    model = FAMILIES[family].from_pretrained(folders[family]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    return [
        [reference_score(model, tokenizer, q.prompt, choice) for choice in q.choices]
        for q in QUESTIONS
    ]


def close_to(expected: list[list[float]]) -> list[Any]:
    return [close(each, abs=2e-4) for each in expected]


def test_the_score_of_a_choice_is_the_sum_of_its_log_probabilities(
    learner: LanguageLearner, expected: list[list[float]]
) -> None:
    assert scores(learner, *QUESTIONS) == close_to(expected)
    # Longer choices score lower: scores are not normalised by length.
    assert expected[3][3] < expected[3][0]


@given(st.permutations(range(4)), st.integers(1, 4))
@settings(max_examples=15)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(
    learner: LanguageLearner, expected: list[list[float]], order: list[int], count: int
) -> None:
    """The others have different lengths and numbers of choices."""
    chosen = order[:count]
    result = scores(learner, *(QUESTIONS[number] for number in chosen))
    assert result == close_to([expected[number] for number in chosen])


def test_the_prediction_is_the_most_likely_choice(
    learner: LanguageLearner, expected: list[list[float]]
) -> None:
    predictions, references = learner.predict(learner.network, batch_of(learner, *QUESTIONS))
    assert predictions.tolist() == [[each.index(max(each))] for each in expected]
    assert references.tolist() == [[0], [1], [1], [3]]


def test_sharing_the_encoder_keeps_the_scores(folders: Folders) -> None:
    model, shared = load_learner(folders["t5"], "rank")
    unshared = dataclasses.replace(
        shared, network=TargetScorer(model.forward_module, True, shares_encoder=False)
    )
    for first, second in zip(scores(shared, *QUESTIONS), scores(unshared, *QUESTIONS), strict=True):
        assert first == close(second, abs=1e-4)


def encodings(network: TargetScorer, batch: Batch) -> list[int]:
    """The batch size of every call of the encoder."""
    sizes: list[int] = []
    encoder: Any = network.get_submodule("model.encoder")
    hook = encoder.register_forward_hook(
        lambda _, args, output: sizes.append(len(output.last_hidden_state))
    )
    network(*(batch[name] for name in ("input_ids", "attention_mask", "labels", "owner")))
    hook.remove()
    return sizes


def test_each_prompt_is_encoded_only_once(folders: Folders) -> None:
    model, learner = load_learner(folders["t5"], "rank")
    batch = batch_of(learner, *QUESTIONS)
    assert encodings(learner.network, batch) == [4]
    assert encodings(TargetScorer(model.forward_module, True, shares_encoder=False), batch) == [11]


def test_the_loss_is_that_of_the_correct_choices(
    learner: LanguageLearner, expected: list[list[float]]
) -> None:
    batch = learner.collate([learner.for_training(question, 0) for question in QUESTIONS])
    correct = [each[q.answer] for q, each in zip(QUESTIONS, expected, strict=True)]
    assert learner.loss(learner.network, batch).item() == close(-sum(correct), abs=1e-3)
    tokens = [
        len(learner.encoder.encode_for_training(question).targets[0]) for question in QUESTIONS
    ]
    assert learner.count_terms(batch) == sum(tokens)


def test_the_mean_loss_matches_transformers(
    folders: Folders, family: str, learner: LanguageLearner
) -> None:
    pairs = [TargetExample(question.prompt, question.target) for question in QUESTIONS]
    batch = learner.collate([learner.for_training(pair, 0) for pair in pairs])
    ours = learner.loss(learner.network, batch) / learner.count_terms(batch)
    model: Any = FAMILIES[family].from_pretrained(folders[family]).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    expected = model(**inputs).loss
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    ours.backward()
    expected.backward()
    names = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert names
    for name in names:
        weight = learner.network.model.get_parameter(name)
        torch.testing.assert_close(
            weight.grad, model.get_parameter(name).grad, atol=1e-5, rtol=1e-4
        )
        weight.grad = None


# Which choice is the most likely.


def ranked(*each: list[float]) -> list[int]:
    owner = [number for number, row in enumerate(each) for _ in row]
    table = scores_by_prompt(torch.tensor(list(itertools.chain(*each))), torch.tensor(owner))
    predictions = table.argmax(dim=-1, keepdim=True)
    assert predictions.shape == (len(each), 1)
    return predictions.flatten().tolist()


def test_the_first_of_equal_scores_wins() -> None:
    assert ranked([-3.0, -2.0, -2.0], [-1.0, -1.0], [-9.0, -9.0, -9.0, -1.0]) == [1, 0, 3]


@given(st.lists(st.lists(st.floats(-1e4, 0, width=32), min_size=1, max_size=6), min_size=1))
def test_the_most_likely_choice_is_found_within_its_row(each: list[list[float]]) -> None:
    assert ranked(*each) == [row.index(max(row)) for row in each]


# How prompts and targets are tokenized; words are digits, and 9 is end of sequence.


def test_labels_start_after_the_prompt() -> None:
    batch = batch_of(
        counting_learner(), RankExample("1 2 3", ("4", "7 8"), 1), RankExample("5", ("6 7",), 0)
    )
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
    """After n, the decoder gives n + 1 the logit 2 and all nine others 0."""
    sure, other = 2 - math.log(math.exp(2) + 9), -math.log(math.exp(2) + 9)
    example = RankExample("1 2 3", ("4", "4 5 6 7 8", "5"), 0)
    # Of "4" only the end is not predicted; of "4 5 6 7 8" all tokens are; of "5" none is.
    assert scores(counting_learner(), example) == [
        close([sure + other, 6 * sure, 2 * other], abs=1e-5)
    ]
    # -3.6 beats -4.8; means over tokens, -1.8 and -0.8, would rank them the other way.
    predictions, _ = counting_learner().predict(
        counting_learner().network, batch_of(counting_learner(), example)
    )
    assert predictions.tolist() == [[0]]


def test_token_accuracy_by_hand() -> None:
    learner = counting_learner()
    batch = batch_of(learner, TargetExample("2 3", "4 5 7"), TargetExample("0", "1"))
    predictions, references = learner.predict(learner.network, batch)
    # Correct: 4, 5 and 1. Wrong: 6 for 7, 8 for the end, and 2 for the end.
    assert references.tolist() == [[-1, 4, 5, 7, 9], [1, 9, -1, -1, -1]]
    assert predictions.tolist() == [[-1, 4, 5, 6, 8], [1, 2, -1, -1, -1]]
    assert learner.count_terms(batch) == 6


def test_log_probabilities_that_are_not_finite_raise() -> None:
    learner = counting_learner()

    def nan_network(*_: object) -> Any:
        return torch.full((2, 5), torch.nan), torch.zeros(2, 5).long()

    network: Any = nan_network
    with pytest.raises(CheckpointError, match="predictions are not finite"):
        learner.predict(network, batch_of(learner, RankExample("1 2 3", ("4", "5"), 0)))


def test_a_decoder_keeps_the_end_of_a_long_prompt() -> None:
    learner = counting_learner()
    example = learner.for_evaluation(TargetExample("0 1 2 3 4 5 6 7 8 0 1 2", "3"))
    assert example["input_ids"].tolist() == [4, 5, 6, 7, 8, 0, 1, 2]
    assert learner.encoder.encode(TargetExample("0 1 2 3 4 5 6 7 8", "3")).is_truncated
    assert not learner.encoder.encode(TargetExample("0 1 2 3 4 5 6 7", "3")).is_truncated


def test_a_t5_keeps_the_beginning_of_a_long_prompt(folders: Folders) -> None:
    _, learner = load_learner(folders["t5"], "rank", max_tokens=5)
    prompt = "the cat sat on the mat and the dog did not"
    all_tokens = learner.encoder.pairs.tokenizer(prompt)["input_ids"]
    read = learner.for_evaluation(TargetExample(prompt, "a"))["input_ids"].tolist()
    assert len(all_tokens) > 5
    assert read == [*all_tokens[:4], learner.encoder.pairs.tokenizer.eos_token_id]
    assert learner.encoder.encode(TargetExample(prompt, "a")).is_truncated
    assert not learner.encoder.encode(TargetExample("a", "a")).is_truncated


@pytest.mark.parametrize("read", ["for_training", "for_evaluation"])
def test_a_target_that_is_too_long_is_refused(read: str) -> None:
    learner = counting_learner()
    assert len(learner.encoder.encode(TargetExample("0", "1 2 3 4 5 6 7")).targets[0]) == 8
    example = RankExample("0", ("1 2 3 4 5 6 7 8", "1"), 0)
    with pytest.raises(DataError, match="has 9 tokens; the limit is 8") as refused:
        learner.for_evaluation(example) if read == "for_evaluation" else learner.for_training(
            example, 0
        )
    assert "Raise `max_tokens:`" in refused.value.hint


# Tokenizers that add special tokens: here <s> is 0, and </s> is 9.


def with_limits(learner: LanguageLearner, tokens: int, positions: int | None = None) -> Any:
    encoder = dataclasses.replace(learner.encoder, max_tokens=tokens, max_positions=positions)
    return dataclasses.replace(learner, encoder=encoder)


def learner_with_template(single: str, max_tokens: int = 8) -> LanguageLearner:
    learner = counting_learner()
    template = processors.TemplateProcessing(single, special_tokens=[("0", 0), ("9", 9)])
    learner.encoder.pairs.tokenizer.backend_tokenizer.post_processor = template
    return with_limits(learner, max_tokens)


@pytest.mark.parametrize(
    ("single", "prompt"), [("0 $A", [0, 1, 2]), ("0 $A 9", [0, 1, 2]), ("$A 9", [1, 2]),
                           ("9 $A", [9, 1, 2])]
)  # fmt: skip
def test_a_decoder_prompt_has_no_end_of_sequence(single: str, prompt: list[int]) -> None:
    """Special tokens at the start are kept; end of sequence comes only after the target."""
    batch = batch_of(learner_with_template(single), TargetExample("1 2", "3 4"))
    assert batch["input_ids"].tolist() == [[*prompt, 3, 4, 9]]
    assert batch["labels"].tolist() == [[-100] * len(prompt) + [3, 4, 9]]


@pytest.mark.parametrize("single", ["0 $A", "0 $A 9"])
def test_truncation_keeps_the_beginning_of_sequence(single: str) -> None:
    learner = learner_with_template(single, max_tokens=4)
    assert learner.for_evaluation(TargetExample("1 2 3 4 5 6", "7"))["input_ids"].tolist() == [
        0,
        4,
        5,
        6,
    ]
    assert learner.for_evaluation(TargetExample("1 2 3", "7"))["input_ids"].tolist() == [0, 1, 2, 3]


def test_words_equal_to_special_tokens_are_kept() -> None:
    example = learner_with_template("0 $A 9").for_evaluation(TargetExample("0 9 1 9 0", "7"))
    assert example["input_ids"].tolist() == [0, 0, 9, 1, 9, 0]


def test_a_decoder_reads_at_most_max_positions_tokens(folders: Folders) -> None:
    learner = with_limits(load_learner(folders["gpt2"], "rank")[1], 100, 12)
    example = learner.for_training(RankExample("one two three " * 20, ("two", "one"), 0), 0)
    assert len(example["input_ids"]) + len(example["targets"][0]) == 12
    with pytest.raises(DataError, match="the limit is 11"):
        learner.for_training(TargetExample("one", "three " * 20), 0)
