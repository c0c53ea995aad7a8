"""Early stopping: rules that reduce the learning rate or end a run by validation accuracy.

Both rules are functions of the accuracies so far, so they have no state to save and restore.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def plateau_factor(accuracies: Sequence[float], patience: int, factor: float) -> float:
    """The factor on the learning rate, in (0, 1]: multiplied by `factor` at every plateau.

    A plateau is `patience` evaluations in a row that do not beat the best before them; then the
    count starts again. With patience 3 and factor 1/2 this is the paper's early stopping (arXiv
    2506.14126, section 5) and torch's ReduceLROnPlateau(patience=2, threshold=0).
    """
    best, bad, result = -math.inf, 0, 1.0
    for accuracy in accuracies:
        bad = 0 if accuracy > best else bad + 1
        best = max(best, accuracy)
        if bad == patience:
            result, bad = result * factor, 0
    return result


def patience_exhausted(accuracies: Sequence[float], count: int, patience: int, band: float) -> bool:
    """Whether the last `patience` evaluations brought no improvement beyond noise.

    An evaluation is an improvement only if it beats the last improvement by more than `band`
    binomial standard errors of an accuracy over `count` examples. So a slow rise counts once it
    adds up, and chance differences within the band do not count.
    """
    best, bad = -math.inf, 0
    for accuracy in accuracies:
        error = math.sqrt(max(0.0, best * (1 - best)) / count) if best > 0 else 0.0
        if accuracy > best + band * error:
            best, bad = accuracy, 0
        else:
            bad += 1
    return bad >= patience
