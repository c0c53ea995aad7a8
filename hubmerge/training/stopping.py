"""When a run is slowed down or ended by its validation accuracy.

Both rules are functions of the accuracies seen so far, so there is nothing to save and restore.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def plateau(accuracies: Sequence[float], patience: int, factor: float) -> float:
    """The share of the learning rate that is left, in (0, 1]: x `factor` at every plateau.

    A plateau is `patience` evaluations in a row that do not beat the best before them; the count
    then starts anew. The paper's early stopping (arXiv 2506.14126, section 5) with patience 3 and
    factor 1/2, as torch's ReduceLROnPlateau(patience=2, threshold=0) does it.
    """
    best, bad, share = -math.inf, 0, 1.0
    for accuracy in accuracies:
        bad = 0 if accuracy > best else bad + 1
        best = max(best, accuracy)
        if bad == patience:
            share, bad = share * factor, 0
    return share


def outlasted(accuracies: Sequence[float], count: int, patience: int, band: float) -> bool:
    """Whether the last `patience` evaluations brought nothing beyond the noise.

    An evaluation counts as better only if it beats the last one that counted by more than `band`
    binomial standard errors of an accuracy over `count` examples: a slow rise counts once it adds
    up, luck within the band does not.
    """
    best, bad = -math.inf, 0
    for accuracy in accuracies:
        error = math.sqrt(max(0.0, best * (1 - best)) / count) if best > 0 else 0.0
        if accuracy > best + band * error:
            best, bad = accuracy, 0
        else:
            bad += 1
    return bad >= patience
