"""Draw a run's weights, losses and epochs over its steps into one picture, from its logs alone.

$ python examples/demo/plot.py demo-out/log demo-out/mixture.png
"""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from history import History, read
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from proof import achieved, planned, word

# Eight colours that stay apart for colour-blind eyes (Okabe & Ito 2008; a grey for its black,
# the yellow darkened for white paper).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6E6E6E", "#B5A800")
RED = "#C1272D"
WINDOWS = 30  # of the achieved shares and of the moving average, over the whole run
STRIP = 0.13  # below the shares, of their range, for the ticks of a method's decisions
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


def draw(history: History, path: Path) -> None:
    """Write the picture, 1400 x 1400 pixels."""
    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(3, 1, figsize=(14, 14), dpi=100, sharex=True)
    figure.subplots_adjust(left=0.07, right=0.85, top=0.935, bottom=0.05, hspace=0.14)
    steps = int(history.start["steps"])
    panel_shares(axes[0], history, steps)
    panel_loss(axes[1], history, steps)
    panel_epochs(axes[2], history, steps)
    for axis in axes:
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
        mark_events(axis, history, with_text=axis is axes[0])
    axes[2].set_xlabel("optimizer step")
    axes[2].set_xlim(0, steps)
    steered = f"steered by {history.method}: " if history.method else ""
    figure.suptitle(
        f"{steered}{len(history.names)} domains, {steps:,} steps of"
        f" {history.start['batch_size']} samples,"
        f" {len(history.attempts)} attempts (grey: lost with a kill and trained again)",
        x=0.07,
        ha="left",
        fontsize=16,
    )
    figure.savefig(path)
    plt.close(figure)


def panel_shares(axis: Axes, history: History, steps: int) -> None:
    """Planned weights as lines, achieved shares of short windows as markers."""
    window = max(2, steps // WINDOWS)
    counts = np.diff(achieved(history), axis=0, prepend=0)
    whole = steps // window * window
    share = counts[:whole].reshape(-1, window, counts.shape[1]).sum(axis=1)
    share = share / share.sum(axis=1, keepdims=True)
    middle = np.arange(len(share)) * window + window / 2
    plan = planned(history)
    for d, colour in enumerate(colours(history)):
        axis.step(np.arange(steps), plan[:, d], where="post", color=colour, lw=1.4)
        axis.plot(middle, share[:, d], MARKERS[d % 8], color=colour, ms=8, mec="white", mew=0.8)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    top = max(plan.max(), share.max()) * 1.12
    axis.set_ylim(0, top)
    if history.method:  # nearer, with room below for ticks and above for words
        low, high = min(plan.min(), share.min()), max(plan.max(), share.max())
        words = 0.05 + 0.15 * (len(history.attempts) - 1)
        axis.set_ylim(low - (STRIP + 0.03) * (high - low), high + words * (high - low))
    heading(
        axis, f"{word(history)} weights (lines), achieved shares (markers: {window} steps each)"
    )
    label_ends(axis, history, plan[-1])


def panel_loss(axis: Axes, history: History, steps: int) -> None:
    """Loss per token of each domain, a moving average weighted by tokens."""
    window = max(2, steps // WINDOWS)
    kernel = np.ones(window)
    ends = []
    for d, colour in enumerate(colours(history)):
        tokens = np.convolve(history.tokens[:, d], kernel, mode="valid")
        sums = np.convolve(history.loss_sum[:, d], kernel, mode="valid")
        with np.errstate(invalid="ignore", divide="ignore"):
            line = np.where(tokens > 0, sums / tokens, np.nan)
        axis.plot(np.arange(len(line)) + window / 2, line, color=colour, lw=1.8)
        finite = line[np.isfinite(line)]
        ends.append(finite[-1] if len(finite) else 0.0)
    heading(axis, f"training loss, nats a token (moving average over {window} steps)")
    label_ends(axis, history, np.array(ends), "{name} {end:.2f}")


def panel_epochs(axis: Axes, history: History, steps: int) -> None:
    """How often each domain has been gone through."""
    epochs = achieved(history) / np.array(history.sizes)
    for d, colour in enumerate(colours(history)):
        axis.plot(np.arange(steps) + 1, epochs[:, d], color=colour, lw=1.8)
    axis.set_ylim(0, None)
    heading(axis, "epochs: draws over size")
    label_ends(axis, history, epochs[-1], "{name} {end:.1f}")


def mark_events(axis: Axes, history: History, with_text: bool) -> None:
    """Shade what was trained on twice, and mark kills, resumes and live decisions."""
    batch, top = history.start["batch_size"], axis.get_ylim()[1]
    lines = 0  # of text, so that the words of several kills do not overlap
    for before, after in zip(history.attempts, history.attempts[1:], strict=False):
        axis.axvspan(after.first_step, before.last_step + 1, color="0.5", alpha=0.18, lw=0)
        axis.axvline(before.last_step + 1, color="0.25", lw=1.2)
        if with_text:
            text = (
                "\n" * lines + f"killed in step {before.last_step + 1} ({ranks(before.world)}), \n"
            )
            text += f"resumed from step {after.first_step} ({ranks(after.world)}) "
            place, side = after.first_step - 2, "right"
            if after.first_step < 0.25 * history.start["steps"]:  # no room there
                place, side = before.last_step + 2, "left"
            axis.text(place, top, text, ha=side, va="top", fontsize=11)
            lines += 2
    if history.method:
        if with_text:
            rug(axis, history)
        return
    for decision in history.decisions:
        axis.axvline(decision["at"] / batch, color="0.25", lw=1.2, ls=(0, (4, 3)))
        if with_text:
            axis.text(decision["at"] / batch, top, " live change", ha="left", va="top", fontsize=11)
    axis.set_ylim(top=top)


def rug(axis: Axes, history: History) -> None:
    """Mark where decisions took effect, and those that were lost with a kill and made anew."""
    batch = int(history.start["batch_size"])
    lost = [
        line["at"] / batch
        for before, after in zip(history.attempts, history.attempts[1:], strict=False)
        for line in before.decisions
        if line["step"] > after.first_step
    ]
    valid = [line["at"] / batch for line in history.decisions]
    place = axis.get_xaxis_transform()
    axis.vlines(valid, 0.0, 0.04, transform=place, color="0.15", lw=1.1)
    axis.vlines(lost, 0.05, 0.09, transform=place, color=RED, lw=1.1)
    text = "ticks: decisions come into force"
    if lost:
        text = "ticks: decisions (red: lost with the kill, made anew)"
    axis.set_title(text, loc="right", fontsize=11, pad=6)


def ranks(world: int) -> str:
    """Say a number of ranks."""
    return f"{world} rank{'s' * (world > 1)}"


def heading(axis: Axes, text: str) -> None:
    """Put a panel's title at its left."""
    axis.set_title(text, loc="left", fontsize=13, pad=6)


def colours(history: History) -> list[str]:
    """Return one colour a domain."""
    return [COLOURS[d % len(COLOURS)] for d in range(len(history.names))]


def label_ends(
    axis: Axes, history: History, ends: NDArray[np.float64], form: str = "{name}"
) -> None:
    """Write each line's name right of its end, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    gap = (high - low) * 0.062
    order = np.argsort(ends)
    places = spread(ends[order], gap, low, high)
    for d, place in zip(order, places, strict=True):
        text = form.format(name=history.names[d], end=ends[d])
        tint = colours(history)[d]
        axis.annotate(
            text,
            xy=(1.0, (ends[d] - low) / (high - low)),
            xytext=(1.025, (place - low) / (high - low)),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=tint,
            va="center",
            fontsize=12,
            fontweight="bold",
            arrowprops={
                "arrowstyle": "-",
                "color": tint,
                "lw": 0.8,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread(ends: NDArray[np.float64], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Move sorted numbers apart to at least `gap`, staying close to where they were."""
    places = ends.astype(float).copy()
    for _ in range(200):
        close = np.diff(places) < gap * 0.999
        if not close.any():
            break
        for i in np.flatnonzero(close):
            middle = (places[i] + places[i + 1]) / 2
            places[i], places[i + 1] = middle - gap / 2, middle + gap / 2
    shift = max(low + gap / 4 - places[0], 0) - max(places[-1] - high, 0)
    return places + shift


def main() -> None:
    """Draw the picture of a folder of logs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("png", type=Path)
    arguments = parser.parse_args()
    draw(read(arguments.log), arguments.png)


if __name__ == "__main__":
    main()
