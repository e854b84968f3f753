"""The report's figures: what each shows, and how it is drawn. Their captions stand in the report.

Figures are deterministic, and legible in print and for colour-blind readers. Text stays text in the SVG (no
outlines), so the reader's own fonts serve every language. matplotlib cannot measure scripts that its own font
lacks. So labels are drawn as plain-letter keys such as `@epoch`, and put into words in the finished SVG.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tandem.report.analysis import Analysis, DepthResult
from tandem.report.phase1 import Curves, phase1_reports_of
from tandem.report.sentences import MEMORY_SHARES
from tandem.report.statistics import MIN_SEEDS, perplexity
from tandem.report.wording import Texts, perplexity_text

Draw = Callable[[Axes, Analysis], None]
"""Draws a figure; where there is nothing to draw, it leaves the axes empty."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333", "#882255")
"""Okabe and Ito's palette (2008), less its yellow, which print loses, and Tol's wine (2021)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FONTS = "system-ui, 'Segoe UI', 'Noto Sans', 'Hiragino Sans', 'Noto Sans CJK JP', Meiryo, sans-serif"
LEGEND_ROWS = 18
"""Entries that stand beside a figure in one column."""
INK, FAINT = "#333333", "#d9d9d9"
DOTTED = (0, (1, 1.6))
LINE_BEHIND: dict[str, Any] = {"color": INK, "ls": (0, (4, 2)), "alpha": 0.75, "zorder": 0.5}
"""Dashed, across the axes, behind everything else."""
NUMBER = {"color": INK, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}}
"""Of a number, with a box behind it, so that no line of a baseline strikes it through."""

WIDE = 2.0
"""Times the lowest perplexity that the highest may be, before a logarithmic axis shows them."""
NEAR = 1.5
"""Times above the highest or below the lowest configuration that a baseline may lie to be drawn with them."""
SIDE_BY_SIDE, MANY, LETTERS = 5, 12, 64
"""Up to so many configurations have their mean written beside it, and above it; so many letters of their
names have room on one line."""
LEAST_CHANGE = 1e-4
"""Below it a context's memory is not drawn: rounding would fill most of the figure."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are no formulas
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
}


def draw_figures(analysis: Analysis, texts: Texts) -> dict[str, str]:
    """Every figure that the records have data for, as {name: SVG document}."""
    drawings: dict[str, Draw] = {
        "validation_perplexity": _validation_perplexity,
        **{
            figure: partial(_phase1, curves, depths)
            for report, depths in phase1_reports_of(analysis)
            for figure, curves in report.figures.items()
        },
        "learning_curves": _learning_curves,
        "memory": _memory,
        "perplexity_by_seconds": _perplexity_by_seconds,
    }
    figures = {name: drawn_svg(name, draw, analysis, texts) for name, draw in drawings.items()}
    return {name: svg for name, svg in figures.items() if svg is not None}


def drawn_svg(name: str, draw: Draw, analysis: Analysis, texts: Texts) -> str | None:
    """The SVG document of what `draw` draws; None where it draws nothing."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the reader's own matplotlibrc says
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        # Of a name in another script, whose letters the reader's fonts have.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(6.8, 3.5), layout="constrained")
        axes = figure.subplots()
        draw(axes, analysis)
        if not axes.has_data():
            return None
        buffer = io.StringIO()
        # Not `savefig`, which would draw everything a first time for the layout alone.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return _cleaned(buffer.getvalue(), name, texts)


def _cleaned(svg: str, name: str, texts: Texts) -> str:
    """The SVG as it can stand in a page beside others, in the reader's fonts and language."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r" font-family: [^;\"]*;| ?<defs>\s*<style.*?</defs>\s*", "", svg, flags=re.DOTALL)
    root = f'<svg style="font-family: {FONTS}; stroke-linejoin: round; stroke-linecap: butt"'
    svg = re.sub("<svg", root, svg, count=1)
    svg = re.sub(r"@([a-z0-9_]+)", lambda key: html.escape(texts.of(f"axes.{key[1]}") or key[0]), svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


# Perplexity by configuration


def _validation_perplexity(axes: Axes, analysis: Analysis) -> None:
    """Every seed's dot; the mean and, from three seeds on, its 95% interval."""
    shown = [
        (c, c.perplexity.mean, *_look(order))
        for order, c in enumerate(analysis.configurations)
        if c.rankable and c.perplexity is not None and math.isfinite(c.perplexity.mean)
    ]
    everything: list[float] = []
    for place, (c, mean, colour, marker) in enumerate(shown):
        values = [v.perplexity for v in c.validation.values() if math.isfinite(v.perplexity)]
        everything += values
        offsets = [0.16 * (i - (len(values) - 1) / 2) / max(len(values) - 1, 1) for i in range(len(values))]
        dots = [place + 0.1 + offset for offset in offsets]
        axes.plot(dots, values, "o", color=colour, alpha=0.55, ms=5, mew=0)
        left, top = place - 0.12, mean
        axes.plot([left], [mean], marker, color=colour, ms=7)
        if c.nll is not None and c.nll.interval is not None and len(values) >= MIN_SEEDS:
            low, top = (perplexity(end) for end in c.nll.interval)
            axes.errorbar([left], [mean], [[mean - low], [top - mean]], color=colour, capsize=4, lw=1.6)
        number: dict[str, Any] = {"text": perplexity_text(mean), "textcoords": "offset points", **NUMBER}
        if len(shown) <= SIDE_BY_SIDE:
            axes.annotate(xy=(left, mean), xytext=(-9, 0), ha="right", va="center", fontsize=8.5, **number)
        elif len(shown) <= MANY:  # no room beside the mean, but above it and its interval
            above = (place, max(top, *values))
            axes.annotate(xy=above, xytext=(0, 5), ha="center", va="bottom", fontsize=8, **number)
    if shown:
        _name_ticks(axes, [c.name for c, *_ in shown])
        axes.set_xlim(-0.6, len(shown) - 0.4)
        if max(everything) > WIDE * min(everything):
            _logarithmic(axes)
        _baseline_lines(axes, analysis)
    axes.set_ylabel("@validation_perplexity")


def _perplexity_by_seconds(axes: Axes, analysis: Analysis) -> None:
    """The mean of every model, baselines hollow; the front of those that no faster one is as good as."""
    if not analysis.baselines:
        return
    shown = [
        (m.seconds_alone.mean, m.perplexity.mean, m)
        for m in analysis.models.values()
        if m.rankable and m.perplexity is not None and m.seconds_alone is not None
    ]
    shown = [point for point in shown if point[0] > 0 and math.isfinite(point[1])]
    for order, (seconds, mean, m) in enumerate(shown):
        colour, marker = _look(order)
        inside = "white" if m.baseline else colour
        axes.plot([seconds], [mean], marker, color=colour, mfc=inside, ms=7, label=m.name)
    front: list[tuple[float, float]] = []
    for seconds, mean, _ in sorted(shown, key=lambda point: point[:2]):
        if not front or mean < front[-1][1]:
            front.append((seconds, mean))
    if shown:
        # To the right edge: more time than the best one's brings nothing here.
        front.append((max(seconds for seconds, *_ in shown), front[-1][1]))
        x, y = zip(*front, strict=True)
        axes.step(x, y, where="post", lw=1, label="@pareto_front", **LINE_BEHIND)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _logarithmic(axes)
    axes.set(xlabel="@seconds", ylabel="@validation_perplexity")
    legend(axes)


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Names under the places 0, 1, …; slanting or upright where they would run into each other."""
    axes.set_xticks(range(len(names)), names)
    if sum(len(name) + 2 for name in names) > LETTERS:
        slant, vertical = (35, "top") if len(names) <= MANY else (90, "center")
        for label in axes.get_xticklabels():
            label.set(rotation=slant, ha="right", va=vertical, rotation_mode="anchor")


def _baseline_lines(axes: Axes, analysis: Analysis) -> None:
    """A line for the mean of every baseline near enough not to squeeze the configurations together."""
    low, high = axes.get_ylim()
    means = [(b.perplexity.mean, b.name) for b in analysis.baselines if b.perplexity]
    near = [(mean, name) for mean, name in means if low / NEAR < mean < high * NEAR]
    for mean, _ in near:
        axes.axhline(mean, lw=1, **LINE_BEHIND)
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits  # heights as shares of the axis, whatever its scale
    height = -1.0
    for mean, name in sorted(near):  # from below, each label clear of the last
        height = max(float(to_axes.transform((0, mean))[1]), height + 1 / 18)
        axes.annotate(
            f"{name} {perplexity_text(mean)}", (1.01, height), xycoords="axes fraction",
            va="center", fontsize=8, color=INK, annotation_clip=False,
        )  # fmt: skip


def _logarithmic(axes: Axes) -> None:
    """Perplexities on a logarithmic y axis, as plain numbers."""

    def minor(y: float, _: object) -> str:
        leading = round(y / 10 ** math.floor(math.log10(y) + 1e-9))
        return f"{y:,.0f}" if leading in (2, 3, 5) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(minor))


# Curves


def _phase1(curves: Curves, depths: Sequence[DepthResult], axes: Axes, _: Analysis) -> None:
    """One colour per context depth: each seed thin; their mean, as far as all seeds reach, thick."""
    for order, depth in enumerate(depths):
        own = [points for p in depth.phase1.values() if (points := curves.points(p))]
        _draw_curves(axes, own, *_look(order), depth.name)
    axes.set(xlabel=f"@{curves.x}", ylabel=f"@{curves.y}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)
    if curves.y_limits:
        axes.set_ylim(*curves.y_limits)


def _learning_curves(axes: Axes, analysis: Analysis) -> None:
    """Validation solid, training dotted; each seed thin, their mean thick."""
    for order, c in enumerate(analysis.configurations):
        colour, marker = _look(order)
        histories = [t.history for t in c.training.values() if t.history]
        validation = [{e.epoch: perplexity(e.validation_nll_nats) for e in h} for h in histories]
        training = [{e.epoch: perplexity(e.train_nll_nats) for e in h} for h in histories]
        _draw_curves(axes, validation, colour, marker, c.name)
        _draw_curves(axes, training, colour, style=DOTTED)
    if axes.has_data():
        axes.plot([], [], color=INK, label="@validation")
        axes.plot([], [], color=INK, ls=DOTTED, label="@training")
    axes.set(xlabel="@epoch", ylabel="@perplexity")
    _logarithmic(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)


def _draw_curves(
    axes: Axes,
    curves: Sequence[dict[int, float]],
    colour: str,
    marker: str | None = None,
    label: str | None = None,
    style: Any = "-",
) -> None:
    """Each curve thin and, up to where the shortest ends, their mean thick."""

    def draw(curve: dict[int, float], **look: Any) -> None:
        values = [y if math.isfinite(y) else math.nan for y in curve.values()]
        axes.plot(list(curve), values, color=colour, ls=style, **look)

    if len(curves) > 1:
        for curve in curves:
            draw(curve, lw=0.8, alpha=0.45)
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    if common:
        mean = {x: fmean(curve[x] for curve in curves) for x in common}
        draw(mean, marker=marker, ms=4.5, markevery=max(1, len(mean) // 8), label=label)


def _memory(axes: Axes, analysis: Analysis) -> None:
    """The mean over seeds; a band from the lowest seed to the highest."""
    if not analysis.memories:
        return
    for order, depth in enumerate(analysis.memories):
        colour, marker = _look(order)
        distances = [point.distance for point in depth.points]
        means = [point.mean if point.mean > 0 else math.nan for point in depth.points]
        axes.plot(distances, means, color=colour, marker=marker, ms=4.5, label=depth.name)
        if len(depth.memory) > 1:
            low = [max(point.low, LEAST_CHANGE) for point in depth.points]
            high = [max(point.high, LEAST_CHANGE) for point in depth.points]
            axes.fill_between(distances, low, high, color=colour, alpha=0.18, lw=0)
    for share in MEMORY_SHARES:
        axes.axhline(share, lw=0.9, **LINE_BEHIND)
    points = [point for depth in analysis.memories for point in depth.points]
    longest = max(1, *(point.distance for point in points))
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)  # a logarithm that has room for distance 0
    axes.set_xlim(-0.3, 1.2 * longest)
    axes.xaxis.set_major_locator(FixedLocator([0, *(2**i for i in range(int(math.log2(longest)) + 1))]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_yscale("log")
    lowest, highest = min(1.0, *(point.mean for point in points)), max(1.0, *(point.high for point in points))
    axes.set_ylim(max(lowest / 1.5, LEAST_CHANGE), 1.4 * highest)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="@distance", ylabel="@change")
    legend(axes)


# Colours and legends


def legend(axes: Axes) -> None:
    """Beside the axes, where anything has a label; in as many columns as its entries need."""
    # The library hides labels that begin with `_`, and gives such ones to lines without a label.
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_child")]
    if lines:
        axes.legend(
            lines, [str(line.get_label()) for line in lines], loc="center left", bbox_to_anchor=(1.0, 0.5),
            handlelength=2.2, ncols=math.ceil(len(lines) / LEGEND_ROWS),
        )  # fmt: skip


def _look(order: int) -> tuple[str, str]:
    """Colour and marker; the markers shift with every round of colours, so that 56 differ."""
    rounds, colour = divmod(order, len(COLOURS))
    return COLOURS[colour], MARKERS[(order + rounds) % len(MARKERS)]
