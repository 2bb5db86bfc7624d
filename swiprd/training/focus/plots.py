"""Draw the model card's two pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from swiprd.training.focus.evaluate import Judged


def plot_training(path: Path, losses: list[float], areas: Sequence[tuple[int, float]]) -> None:
    """Draw the loss of every step, and the held-out area under the ROC curve."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    left = figure.subplots()
    window = max(1, min(25, len(losses) // 4))
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    left.plot(np.arange(len(smooth)) + window, smooth, color="tab:blue")
    left.set(xlabel="step", ylabel="cross-entropy (blue)", ylim=(0, None))
    right = left.twinx()
    right.plot([step for step, _ in areas], [area for _, area in areas], "o-", color="tab:orange")
    right.set(ylabel="held-out ROC AUC (orange)", ylim=(0.8, 1))
    figure.savefig(path, dpi=100)


def plot_roc(path: Path, conditions: dict[str, list[Judged]]) -> None:
    """Draw both methods' ROC curves over all blurs, a panel for each condition."""
    figure = Figure(figsize=(3 * len(conditions), 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(conditions), sharey=True))
    for axes, (title, judged) in zip(panels, conditions.items(), strict=True):
        truth = np.array([one.blur == "none" for one in judged])
        for label, scores in (
            ("focus", [one.model for one in judged]),
            ("variance of Laplacian", [one.laplacian for one in judged]),
        ):
            order = truth[np.argsort(-np.array(scores), kind="stable")]
            found, wrong = np.cumsum(order) / order.sum(), np.cumsum(~order) / (~order).sum()
            axes.plot(np.insert(wrong, 0, 0), np.insert(found, 0, 0), label=label)
        axes.set(xlabel="blurred taken for sharp", title=title)
    panels[0].set_ylabel("sharp found")
    panels[-1].legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=100)
