"""How well a generated text agrees with the reference: one number from 0 to 1 for a pair of texts.

Sources: F1 as the evaluation script of SQuAD computes it (Rajpurkar et al., arXiv 1606.05250);
ROUGE-L as the package rouge_score computes it without a stemmer (Lin, W04-1013).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD_GAPS = re.compile(r"[^a-z0-9]+")


def exact_match(prediction: str, reference: str) -> float:
    """1 if the texts are equal but for white space around them, else 0."""
    return float(prediction.strip() == reference.strip())


def contains(prediction: str, reference: str) -> float:
    """1 if the prediction has the reference in it, without white space around that, else 0."""
    return float(reference.strip() in prediction)


def f1(prediction: str, reference: str) -> float:
    """The F1 of the words that the texts share, without case, punctuation and articles.

    Texts without any other word agree if both are so.
    """
    predicted, expected = _squad_words(prediction), _squad_words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return _f_measure(shared, len(predicted), len(expected))


def rouge_l(prediction: str, reference: str) -> float:
    """The F1 of the longest common subsequence of words, without case and punctuation.

    Words are runs of a-z and 0-9, so texts in other scripts have none, and score 0.
    """
    predicted, expected = _rouge_words(prediction), _rouge_words(reference)
    return _f_measure(_common_length(predicted, expected), len(predicted), len(expected))


TEXT_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "contains": contains,
    "f1": f1,
    "rouge_l": rouge_l,
}


def _f_measure(shared: int, predicted: int, expected: int) -> float:
    if shared == 0:
        return 0.0
    precision, recall = shared / predicted, shared / expected
    return 2 * precision * recall / (precision + recall)


def _squad_words(text: str) -> list[str]:
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", letters).split()


def _rouge_words(text: str) -> list[str]:
    return _WORD_GAPS.sub(" ", text.lower()).split()


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            above = lengths[index]
            lengths[index] = diagonal + 1 if word == other else max(above, lengths[index - 1])
            diagonal = above
    return lengths[-1]
