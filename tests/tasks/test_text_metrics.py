"""Metrics of generated texts, with values by hand and those of the packages they come from."""

from __future__ import annotations

import pytest

from hubmerge.tasks.text_metrics import contains, exact_match, f1, rouge_l


def test_exact_match_ignores_white_space_around_texts_alone() -> None:
    assert exact_match(" Paris\n", "Paris") == 1
    assert exact_match("paris", "Paris") == 0
    assert exact_match("Paris.", "Paris") == 0


def test_contains_looks_for_the_whole_reference() -> None:
    assert contains("It is Paris, of course.", " Paris ") == 1
    assert contains("It is par is.", "Paris") == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("The cat!", "a cat", 1.0),
        ("cat dog", "cat", 2 / 3),  # precision 1/2, recall 1
        ("cat cat dog", "cat cat bird", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_f1_counts_shared_words_as_squad_does(
    prediction: str, reference: str, value: float
) -> None:
    assert f1(prediction, reference) == pytest.approx(value)


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [  # rouge_score 0.1.2, RougeScorer(["rougeL"], use_stemmer=False), fmeasure
        ("the cat sat on the mat", "the cat is on the mat", 0.8333333333333334),
        ("Police killed the gunman.", "police kill the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("a-b c3 d", "a b c 3 d", 0.6666666666666665),
        ("", "word", 0.0),
        ("ja ja nein", "nein ja ja ja", 0.5714285714285715),
        ("x y z", "a b", 0.0),
        ("Don't stop, now!", "dont stop now", 0.5714285714285715),
    ],
)
def test_rouge_l_is_that_of_rouge_score(prediction: str, reference: str, value: float) -> None:
    assert rouge_l(prediction, reference) == pytest.approx(value, abs=1e-12)
