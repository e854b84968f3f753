"""The report's figures as SVG text: deterministic, legible in print and for colour-blind readers.

Text stays text in the SVG (no outlines), so the reader's own fonts serve every language. matplotlib cannot
measure scripts that its own font lacks; labels are therefore drawn as plain-letter keys and put into words in
the finished SVG. Figures carry no title: their captions stand in the report.
"""

import html
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tandem.records import Phase1Iteration
from tandem.report.results import Analysis, ModelResult
from tandem.report.statistics import MIN_SEEDS, perplexity
from tandem.report.wording import Texts, count_short, perplexity_text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333")
"""Okabe and Ito's palette (2008), less its yellow, which print loses."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FONTS = "system-ui, 'Segoe UI', 'Noto Sans', 'Hiragino Sans', 'Noto Sans CJK JP', Meiryo, sans-serif"
NEAR = 1.5
"""Times above the highest or below the lowest configuration that a baseline may lie to be drawn with them."""
INK, FAINT = "#333333", "#d9d9d9"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "axes.unicode_minus": True,
}


def draw_figures(analysis: Analysis, texts: Texts) -> dict[str, str]:
    """Every figure that the records have data for, as {name: SVG document}."""
    drawings: dict[str, Callable[[Axes, Analysis], bool]] = {
        "validation_perplexity": _validation_perplexity,
        "phase1_convergence": _phase1_convergence,
        "phase1_loss": _phase1_loss,
        "learning_curves": _learning_curves,
        "perplexity_parameters": _perplexity_parameters,
    }
    figures = {}
    for name, draw in drawings.items():
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # whatever the reader's own matplotlibrc says
            matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
            figure = Figure(figsize=(6.8, 3.5), layout="constrained")
            FigureCanvasSVG(figure)
            if draw(figure.subplots(), analysis):
                figures[name] = _svg(figure, name, texts)
    return figures


def inline_svg(svg: str) -> str:
    """The drawing for use inside an HTML page, where namespaces are implied."""
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")


def _svg(figure: Figure, name: str, texts: Texts) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # several stand in one page
    svg = re.sub(r" font-family: [^;\"]*;| ?<defs>\s*<style.*?</defs>\s*", "", svg, flags=re.DOTALL)
    root = f'<svg style="font-family: {FONTS}; stroke-linejoin: round; stroke-linecap: butt"'
    svg = re.sub("<svg", root, svg, count=1)
    svg = re.sub(r"@([a-z0-9_]+)", lambda key: html.escape(texts(f"axes.{key[1]}")), svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _validation_perplexity(axes: Axes, analysis: Analysis) -> bool:
    """Every seed's dot; the mean and, from three seeds on, its 95% interval."""
    shown = [c for c in analysis.configurations if _finite(c)]
    for place, c in enumerate(shown):
        colour = _colour(analysis, c)
        values = _finite_perplexities(c)
        offsets = [0.16 * (i - (len(values) - 1) / 2) / max(len(values) - 1, 1) for i in range(len(values))]
        axes.plot(
            [place + 0.1 + offset for offset in offsets], values, "o", color=colour, alpha=0.55, ms=5, mew=0
        )
        if c.nll is None:
            continue
        mean = perplexity(c.nll.mean)
        axes.plot([place - 0.12], [mean], _marker(analysis, c), color=colour, ms=7)
        if c.nll.interval is not None and len(values) >= MIN_SEEDS:
            low, high = (perplexity(end) for end in c.nll.interval)
            axes.errorbar(
                [place - 0.12], [mean], [[mean - low], [high - mean]], color=colour, capsize=4, lw=1.6
            )
        axes.annotate(
            perplexity_text(mean), (place - 0.12, mean), (-9, 0), textcoords="offset points",
            ha="right", va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    axes.set_xticks(range(len(shown)), [c.name for c in shown])
    axes.set_xlim(-0.6, len(shown) - 0.4)
    if shown:
        _baseline_lines(axes, analysis)
    axes.set_ylabel("@validation_perplexity")
    return bool(shown)


def _baseline_lines(axes: Axes, analysis: Analysis) -> None:
    """A line for the mean of every baseline near enough not to squeeze the configurations together."""
    low, high = axes.get_ylim()
    near = {
        b.name: b.mean_perplexity
        for b in analysis.baselines
        if b.mean_perplexity is not None and low / NEAR < b.mean_perplexity < high * NEAR
    }
    for mean in near.values():
        axes.axhline(mean, color=INK, lw=1, ls=(0, (4, 2)), alpha=0.75, zorder=0.5)
    low, high = axes.get_ylim()
    places = sorted(near.items(), key=lambda item: item[1])
    height = low - high
    for name, mean in places:  # from below, each label clear of the last
        height = max(mean, height + (high - low) / 18)
        axes.annotate(
            f"{name} {perplexity_text(mean)}", (1.01, height), xycoords=("axes fraction", "data"),
            va="center", fontsize=8, color=INK, annotation_clip=False,
        )  # fmt: skip


def _phase1_convergence(axes: Axes, analysis: Analysis) -> bool:
    drawn = _phase1(axes, analysis, lambda step: 100 * step.convergence_rate)
    axes.set_ylabel("@convergence_rate")
    axes.set_ylim(0, 101)
    return drawn


def _phase1_loss(axes: Axes, analysis: Analysis) -> bool:
    drawn = _phase1(axes, analysis, lambda step: step.loss)
    axes.set_ylabel("@phase1_loss")
    return drawn


def _phase1(axes: Axes, analysis: Analysis, value: Callable[[Phase1Iteration], float]) -> bool:
    """One colour per context depth: each seed thin; their mean, as far as all seeds reach, thick."""
    drawn = False
    for order, depth in enumerate(analysis.depths):
        curves = [{s.iteration: value(s) for s in p.history} for p in depth.phase1.values()]
        name = f"C{depth.context_layers}"
        drawn |= _curves(
            axes, [c for c in curves if c], COLOURS[order % len(COLOURS)], name, MARKERS[order % 7]
        )
    axes.set_xlabel("@iteration")
    _finish(axes)
    return drawn


def _learning_curves(axes: Axes, analysis: Analysis) -> bool:
    """Validation solid, training dotted; each seed thin, their mean thick."""
    drawn = False
    for c in analysis.configurations:
        colour, marker = _colour(analysis, c), _marker(analysis, c)
        histories = [t.history for t in c.training.values() if t.history]
        validation = [{e.epoch: perplexity(e.validation_nll_nats) for e in h} for h in histories]
        training = [{e.epoch: perplexity(e.train_nll_nats) for e in h} for h in histories]
        drawn |= _curves(axes, validation, colour, c.name, marker)
        _curves(axes, training, colour, None, None, style=(0, (1, 1.6)))
    if drawn:
        axes.plot([], [], color=INK, label="@validation")
        axes.plot([], [], color=INK, ls=(0, (1, 1.6)), label="@training")
    axes.set_xlabel("@epoch")
    axes.set_ylabel("@perplexity")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.yaxis.set_minor_formatter(
        FuncFormatter(lambda y, _: f"{y:,.0f}" if _leading(y) in (2, 3, 5) else "")
    )
    _finish(axes)
    return drawn


def _perplexity_parameters(axes: Axes, analysis: Analysis) -> bool:
    shown = [c for c in analysis.configurations if _finite(c) and c.parameters is not None]
    for c in shown:
        if c.nll is None or c.parameters is None:
            continue
        mean, size = perplexity(c.nll.mean), c.parameters.total
        colour = _colour(analysis, c)
        values = _finite_perplexities(c)
        axes.plot([size] * len(values), values, "_", color=colour, alpha=0.7, ms=10, mew=1.4)
        axes.plot([size], [mean], _marker(analysis, c), color=colour, ms=7)
        axes.annotate(c.name, (size, mean), (9, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count_short(x)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("@total_parameters")
    axes.set_ylabel("@validation_perplexity")
    return bool(shown)


def _curves(
    axes: Axes,
    curves: Sequence[dict[int, float]],
    colour: str,
    label: str | None,
    marker: str | None,
    style: str | tuple[float, tuple[float, ...]] = "-",
) -> bool:
    """Each curve thin and, up to where the shortest ends, their mean thick; false if there is none."""
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*_points(curve), color=colour, lw=0.8, alpha=0.45, ls=style)
    common = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    mean = {x: fmean(curve[x] for curve in curves) for x in common}
    if not mean:
        return False
    axes.plot(
        *_points(mean), color=colour, ls=style, marker=marker, ms=4.5,
        markevery=max(1, len(mean) // 8), label=label,
    )  # fmt: skip
    return True


def _points(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    """Coordinates; gaps where a value is not finite."""
    return list(curve), [y if math.isfinite(y) else math.nan for y in curve.values()]


def _finish(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.2)


def _finite(c: ModelResult) -> bool:
    return c.rankable and math.isfinite(c.mean_perplexity or math.inf)


def _finite_perplexities(c: ModelResult) -> list[float]:
    """Of every seed that has one."""
    return [v.perplexity for v in c.validation.values() if math.isfinite(v.perplexity)]


def _colour(analysis: Analysis, c: ModelResult) -> str:
    return _cycled(COLOURS, analysis.configurations, c)


def _marker(analysis: Analysis, c: ModelResult) -> str:
    return _cycled(MARKERS, analysis.configurations, c)


def _cycled(choices: Sequence[str], all_of: Iterable[ModelResult], one: ModelResult) -> str:
    return choices[[c.name for c in all_of].index(one.name) % len(choices)]


def _leading(value: float) -> int:
    """First digit of a positive number."""
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9))
