"""All results as one page of tables and one figure."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
from by_example import CANARIES, DELTA, NOISED, PLAIN
from by_silo import EPSILON, KINDS, LONGER, MANY, MOST, RANK, ROUNDS
from sets import colluding, widened

from fedml_keylock.evaluation.interval import mean_interval

mpl.use("Agg")
import matplotlib.pyplot as plt

Found = Mapping[str, Mapping[str, Any]]
DATA = ("mnist", "fashion_mnist")
EPSILONS = ("None", "inf", "8", "4", "2", "1")
SILOS = (3, 10, 30, 100, 1000, MANY)
TARGET = 3.0
CLASS_MEAN = "mean image of the class"
COMMAND = "python examples/privacy_frontier/run.py --data ROOT --output privacy-frontier"


class Results:
    """What is in numbers.json, by what it is about; what is not there is empty."""

    def __init__(self, found: Found) -> None:
        self.found = found

    def each(self, name: str, key: str = "accuracy") -> list[float]:
        """One value a seed."""
        return [
            result[key]
            for title, result in self.found.items()
            if title.rpartition(" seed ")[0] == name and result.get(key) is not None
        ]

    def mean(self, name: str, key: str = "accuracy") -> float | None:
        """Over seeds."""
        values = self.each(name, key)
        return sum(values) / len(values) if values else None

    def percent(self, name: str) -> str:
        """The accuracy over seeds, with its interval if there are three."""
        values = self.each(name)
        if not values:
            return "-"
        made = mean_interval([100 * value for value in values])
        if made["n"] < 3:
            return f"{made['mean']:.1f}"
        return f"{made['mean']:.1f} [{made['low']:.1f}, {made['high']:.1f}]"

    def sum(self, stage: str, others: int, noise: str, attacker: str) -> Mapping[str, Any] | None:
        """One attacker's."""
        return self.found.get(f"sum {stage} {others} others {noise} {attacker}")


def example(data: str, silos: int, epsilon: str) -> str:
    """A result's name without its seed."""
    return f"example {data} {silos} silos epsilon {epsilon}"


def number(value: float | None, digits: int = 2) -> str:
    """As it stands in a table."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    every = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in every] + [""]


def by_example(results: Results) -> list[str]:
    """unit: example."""
    rows = []
    for data, silos, epsilon in product(DATA, (3, 10), EPSILONS):
        name = example(data, silos, epsilon)
        values = results.each(name)
        if not values:
            continue
        best = results.mean(example(data, 3, "None"))
        lost = None if best is None else 100 * (results.mean(name) - best)
        said = {"None": "no noise, no clipping", "inf": "no noise, clipped"}
        bound = results.mean(name, "epsilon")
        rows.append(
            [
                data,
                f"{silos}, {colluding(silos)} collude" if bound else "any",
                said.get(epsilon, epsilon),
                number(results.mean(name, "multiplier"), 3),
                results.percent(name),
                "0" if epsilon == "None" else number(lost, 1),
                number(results.mean(name, "canary")),
                str(len(values)),
            ]
        )
    head = ("data", "silos", "epsilon", "z", "accuracy, %", "minus no noise", "canaries", "seeds")
    return table(head, rows)


def by_silo(results: Results) -> list[str]:
    """unit: silo, and FedML's own."""
    rows = []
    for kind, silos in product(KINDS, SILOS):
        name = f"silo {kind} {silos} silos "
        dimension = results.mean(name + "sealed", "dimension")
        if dimension is None:
            continue
        rows.append(
            [
                kind,
                f"{dimension:.0f}",
                f"{silos:,}",
                number(_over_clip(results, kind, silos)),
                number(results.mean(name + "sealed", "noise_over_signal"), 2),
                *(results.percent(name + how) for how in ("none", "sealed", "ldp", "cdp")),
                str(len(results.each(name + "sealed"))),
            ]
        )
    head = ("trained", "numbers", "silos", "noise over clip", "noise over signal")
    return table((*head, "no noise, clipped", "sealed", "FedML ldp", "FedML cdp", "seeds"), rows)


def best(results: Results, stage: str, others: int, noise: str) -> tuple[float, str] | None:
    """The best attacker's score."""
    every = [
        (found["ssim_aligned"], attacker)
        for attacker in ("search", "decoder")
        if (found := results.sum(stage, others, noise, attacker))
    ]
    return max(every, default=None)


def by_sum(results: Results) -> list[str]:
    """Attacks."""
    rows = []
    for stage, others in product(("untrained", "trained"), (1, 2, 4, 9)):
        found = results.sum(stage, others, "none", "search")
        if found is None:
            continue
        cells = []
        for noise in ("none", "example", "silo"):
            scores = (results.sum(stage, others, noise, one) for one in ("search", "decoder"))
            cells.append(" / ".join(number(s and s["ssim_aligned"]) for s in scores))
        floor = number(found["floors"].get(CLASS_MEAN))
        count = str(len(found["each"]))
        rows.append([stage, str(others), *cells, floor, count])
    head = ("weights", "other silos", "no noise", "unit: example", "unit: silo", "class mean")
    return table((*head, "images"), rows)


def by_less(results: Results, less: Mapping[float, float]) -> list[str]:
    """Where attackers begin to see."""
    rows = []
    for multiplier, epsilon in less.items():
        scores = [results.sum("untrained", 1, f"z {multiplier}", a) for a in ("search", "decoder")]
        shown = [number(s and s["ssim_aligned"]) for s in scores]
        rows.append([f"{multiplier:g}", f"{epsilon:,.0f}", *shown])
    return table(("z", "epsilon", "search", "decoder"), rows)


def _lost(results: Results, kind: str, silos: int) -> float:
    """Points that noise costs; NaN, which is no more and no less, where it was not measured."""
    pair = [results.mean(f"silo {kind} {silos} silos {how}") for how in ("none", "sealed")]
    return math.nan if None in pair else 100 * (pair[0] - pair[1])


def _over_clip(results: Results, kind: str, silos: int) -> float:
    """How long the noise in an average is, in clips."""
    name = f"silo {kind} {silos} silos sealed"
    z, dimension = results.mean(name, "multiplier"), results.mean(name, "dimension")
    return z * widened(silos) * dimension**0.5 / silos


def verdicts(results: Results) -> list[str]:
    """The targets, each reached or not."""
    lines = []
    for silos in (3, 10):
        values = results.mean(example("mnist", silos, "8"))
        plain = results.mean(example("mnist", 3, "None"))
        if values is None or plain is None:
            continue
        lost = 100 * (plain - values)
        said = "reached" if lost <= TARGET else "**not reached**"
        lines.append(
            f"- MNIST, {silos} silos, `unit: example`, epsilon 8: {lost:.1f} points below no "
            f"noise, {TARGET:.0f} allowed: {said}."
        )
    for kind in KINDS:
        few = [silos for silos in SILOS if _lost(results, kind, silos) > TARGET]
        many = [silos for silos in SILOS if _lost(results, kind, silos) <= TARGET]
        if few and many:
            lines.append(
                f"- `unit: silo`, epsilon {EPSILON:g}, {kind}: "
                + ", ".join(
                    f"with {silos:,} silos {max(0.0, _lost(results, kind, silos)):.1f} points lost "
                    f"(noise of {_over_clip(results, kind, silos):.2f} clips)"
                    for silos in (max(few), min(many))
                )
                + f": within {TARGET:.0f} from {min(many):,} on."
            )
    every = [
        (score[0], found["floors"][CLASS_MEAN], stage, others, noise)
        for stage, others, noise in product(
            ("untrained", "trained"), (1, 2, 4, 9), ("example", "silo")
        )
        if (score := best(results, stage, others, noise))
        and (found := results.sum(stage, others, noise, "search"))
    ]
    if every:
        score, floor, stage, others, noise = max(every, key=lambda one: one[0] - one[1])
        said = "reached" if score <= floor else "**not reached**"
        lines.append(
            f"- No attacker above the class mean at epsilon 8: the nearest has {score:.2f} where "
            f"the class mean has {floor:.2f} ({stage}, a sum of {others}, `unit: {noise}`): "
            f"{said}."
        )
    return [*lines, ""]


def page(found: Found, less: Mapping[float, float]) -> str:
    """Everything as Markdown."""
    results = Results(found)
    lines = [
        "# Noise under the seal: what it costs, and what it stops",
        "",
        f"`{COMMAND}`",
        "",
        "![Accuracy and leakage against epsilon](frontier.png)",
        "",
        *verdicts(results),
        "## `unit: example`",
        "",
        f"LeNet, all 60,000 images, tested with the 10,000; delta {DELTA:g}. One gradient step a "
        f"round, {NOISED.steps} rounds; each example is in a batch with probability 1/"
        f"{1 / NOISED.share:.0f}; plain SGD at a rate of {NOISED.rate:g}; a clip of "
        f"{NOISED.clip:g}. These were chosen by what one seed had on MNIST's test set at epsilon "
        "8, and stay the same elsewhere. A simulation in one process: a Poisson batch of the union "
        "has the distribution of the silos' own together, and "
        "`plugin_tests/jobs/test_privacy_frontier_example.py` holds a step to the package's. "
        f"*No noise, no clipping* is what does best of as many examples: {PLAIN.steps} steps of "
        f"{PLAIN.batch} at {PLAIN.rate:g}. 30 silos of which 10 collude are not measured again, as "
        f"their sum has the very noise of 3 of which 1 does. *Canaries*: {CANARIES} more examples "
        "with random gradients, and the epsilon that they show to who has all sums and knows no "
        "silo's noise: an estimate (arXiv 2302.03098), and no bound.",
        "",
        *by_example(results),
        "## `unit: silo`",
        "",
        f"LeNet on MNIST, epsilon {EPSILON:g} at delta {DELTA:g} in {ROUNDS} rounds, all silos in "
        "each, of which a third collude. *full*: all weights, from random ones. *last*: the last "
        "layer alone, on what Fashion-MNIST has taught the layers below. *low rank*: of that layer "
        f"a change of rank {RANK}, whose other factor stays as it is. A silo trains on at most "
        f"{MOST} of its images in a round. *Noise over clip*: the length of the noise in the "
        "average, in clips, which `fedml-keylock privacy` tells before a job; *over signal*: in "
        "lengths of the average of clipped updates, measured over all rounds. The clip is "
        f"{KINDS['full'].clip:g}, and {LONGER} with {MANY:,} silos. FedML's `ldp` and `cdp` are "
        "its own classes, at the same accounted epsilon. `ldp` clips nothing: here updates are "
        "clipped before it, and each silo adds all of the noise. `cdp` clips weights, not updates, "
        "and trusts the server. Both draw from a generator that FedML seeds alike on every rank; "
        "here it is taken to be independent.",
        "",
        *by_silo(results),
        "## What is seen of other silos' sum",
        "",
        "Mean aligned SSIM of a search / of a trained decoder (of one image only), each other silo "
        "with one image and one step. The observer has taken off its own part and noise. Noise of "
        "epsilon 8 of both units, added by the package's own code; *no noise*: no clipping either. "
        "Trained weights are those of `unit: example`, epsilon 8. One seed.",
        "",
        *by_sum(results),
        "Where attackers begin to see: one other silo, untrained weights; epsilon of "
        f"`unit: example`, {NOISED.steps} rounds as above.",
        "",
        *by_less(results, less),
    ]
    return "\n".join(lines)


def draw(found: Found, less: Mapping[float, float], path: Path) -> Path:
    """Accuracy against epsilon of both sets, accuracy against silos, leakage against epsilon."""
    results = Results(found)
    figure, axes = plt.subplots(2, 2, figsize=(13, 10))
    _accuracy(axes[0][0], results)
    _silos(axes[0][1], results)
    _leakage(axes[1][0], results, less)
    _canaries(axes[1][1], results)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _accuracy(axis: plt.Axes, results: Results) -> None:
    for place, (data, silos) in enumerate(product(DATA, (3, 10))):
        known = [
            (float(epsilon), made)
            for epsilon in EPSILONS[2:]
            if (values := results.each(example(data, silos, epsilon)))
            and (made := mean_interval([100 * one for one in values]))
        ]
        if not known:
            continue
        x, made = zip(*sorted(known, key=lambda one: one[0]), strict=True)
        half = [0 if one["n"] < 3 else one["mean"] - one["low"] for one in made]
        label = f"{data}, {silos} silos"
        where = [one["mean"] for one in made]
        axis.errorbar(x, where, yerr=half, marker="os"[place % 2], color=f"C{place}", label=label)
    for data, style in zip(DATA, ("-", "--"), strict=True):
        if plain := results.mean(example(data, 3, "None")):
            axis.axhline(100 * plain, color="grey", linestyle=style, label=f"{data}, no noise")
    axis.set_xscale("log", base=2)
    axis.set_xticks([2, 4, 8], ["2", "4", "8"])
    axis.set_xlabel(f"epsilon at delta {DELTA:g}")
    axis.set_ylabel("accuracy, %")
    axis.set_title("unit: example")
    if axis.lines:
        axis.legend(fontsize=8)


def _canaries(axis: plt.Axes, results: Results) -> None:
    for place, (data, silos) in enumerate(product(DATA, (3, 10))):
        known = [
            (float(epsilon), value)
            for epsilon in EPSILONS[2:]
            if (value := results.mean(example(data, silos, epsilon), "canary")) is not None
        ]
        if known:
            x, y = zip(*sorted(known), strict=True)
            axis.plot(
                x, y, marker="os"[place % 2], color=f"C{place}", label=f"{data}, {silos} silos"
            )
    axis.plot([1, 8], [1, 8], color="grey", linestyle="--", label="the bound")
    axis.set_xlabel(f"epsilon that is accounted for, at delta {DELTA:g}")
    axis.set_ylabel("epsilon that canaries show")
    axis.set_title("unit: example, an estimate and the bound")
    axis.legend(fontsize=8)


def _silos(axis: plt.Axes, results: Results) -> None:
    for place, kind in enumerate(KINDS):
        for how, style in (("none", ":"), ("sealed", "-"), ("cdp", "--"), ("ldp", "-.")):
            known = [
                (silos, 100 * value)
                for silos in SILOS
                if (value := results.mean(f"silo {kind} {silos} silos {how}")) is not None
            ]
            if known:
                label = f"{kind}, {'no noise' if how == 'none' else how}"
                x, y = zip(*known, strict=True)
                axis.plot(x, y, style, marker=".", color=f"C{place}", label=label)
    axis.set_xscale("log")
    axis.set_xlabel("silos")
    axis.set_ylabel("accuracy, %")
    axis.set_title(f"unit: silo, epsilon {EPSILON:g}, MNIST")
    if axis.lines:
        axis.legend(fontsize=7)


def _leakage(axis: plt.Axes, results: Results, less: Mapping[float, float]) -> None:
    known = {EPSILON: "example", **{eps: f"z {z}" for z, eps in less.items()}}
    for attacker, mark in (("search", "o"), ("decoder", "s")):
        shown = [
            (epsilon, found["ssim_aligned"])
            for epsilon, noise in sorted(known.items())
            if (found := results.sum("untrained", 1, noise, attacker))
        ]
        if shown:
            axis.plot(*zip(*shown, strict=True), marker=mark, label=f"{attacker}, one other silo")
    for place, others in enumerate((2, 4, 9)):
        if found := results.sum("untrained", others, "example", "search"):
            label = f"search, {others} others"
            mark = "^v<"[place]
            axis.plot([EPSILON], [found["ssim_aligned"]], mark, color="C0", label=label)
    if found := results.sum("untrained", 1, "none", "search"):
        axis.axhline(found["ssim_aligned"], color="grey", linestyle="--", label="no noise")
        axis.axhline(found["floors"][CLASS_MEAN], color="grey", label="class mean")
    axis.set_xscale("log")
    axis.set_xlabel(f"epsilon at delta {DELTA:g}")
    axis.set_ylabel("aligned SSIM, untrained weights")
    axis.set_title("unit: example, what the sum of others gives")
    axis.set_ylim(-0.05, 1.05)
    if axis.lines:
        axis.legend(fontsize=8)
