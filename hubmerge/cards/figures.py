"""Figures: curves of accuracy over steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Curve = Mapping[int, tuple[float, float]]  # step -> (accuracy in [0, 1], standard error)


def draw_curves(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Write accuracy against step (log axis) with bands of one standard error, as PNG or SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "hubmerge"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for number, (name, curve) in enumerate(curves.items()):
        steps = sorted(curve)
        values = [100 * curve[step][0] for step in steps]
        errors = [100 * curve[step][1] for step in steps]
        color = f"C{number}"
        axes.plot(steps, values, marker="o", markersize=4, color=color, label=name)
        low = [value - error for value, error in zip(values, errors, strict=True)]
        high = [value + error for value, error in zip(values, errors, strict=True)]
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({step for curve in curves.values() for step in curve}))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:.0f}")
    axes.set_xlabel("expert training steps")
    axes.set_ylabel("accuracy, mean over tasks (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date and version that matplotlib would write, the same curves are the same bytes.
    metadata = {"Software": None} if path.suffix == ".png" else {"Date": None}
    figure.savefig(path, dpi=150, metadata=metadata)
    pyplot.close(figure)
