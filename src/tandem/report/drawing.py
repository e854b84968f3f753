"""How figures are drawn: style, colours, curves over seeds, and the SVG text that comes of it.

Figures are deterministic, and legible in print and for colour-blind readers.

Text stays text in the SVG (no outlines), so the reader's own fonts serve every language. matplotlib cannot
measure scripts that its own font lacks; labels are therefore drawn as plain-letter keys and put into words in
the finished SVG.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tandem.report.results import Analysis
from tandem.report.wording import Texts

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333", "#882255")
"""Okabe and Ito's palette (2008), less its yellow, which print loses, and Tol's wine (2021)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FONTS = "system-ui, 'Segoe UI', 'Noto Sans', 'Hiragino Sans', 'Noto Sans CJK JP', Meiryo, sans-serif"
LEGEND_ROWS = 18
"""Entries that stand beside a figure in one column."""
INK, FAINT = "#333333", "#d9d9d9"

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
    "axes.unicode_minus": True,
}


def drawn_svg(
    name: str, draw: Callable[[Axes, Analysis], bool], analysis: Analysis, texts: Texts
) -> str | None:
    """The SVG document of what `draw` draws; None where it says that there was nothing to draw."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the reader's own matplotlibrc says
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        # Of a name in another script, whose letters the reader's fonts have.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(6.8, 3.5), layout="constrained")
        FigureCanvasSVG(figure)
        return _svg(figure, name, texts) if draw(figure.subplots(), analysis) else None


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
    svg = re.sub(r"@([a-z0-9_]+)", lambda key: html.escape(texts.of(f"axes.{key[1]}") or key[0]), svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def draw_curves(
    axes: Axes,
    curves: Sequence[dict[int, float]],
    colour: str,
    marker: str | None = None,
    label: str | None = None,
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


def finish(axes: Axes) -> None:
    """Whole numbers along the x axis, and the legend."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)


def legend(axes: Axes) -> None:
    """Beside the axes, where anything has a label; in as many columns as its entries need."""
    # The library hides labels that begin with `_`, and gives such ones to lines without a label.
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_child")]
    if lines:
        columns = math.ceil(len(lines) / LEGEND_ROWS)
        axes.legend(
            lines, [str(line.get_label()) for line in lines], loc="center left",
            bbox_to_anchor=(1.0, 0.5), handlelength=2.2, ncols=columns,
        )  # fmt: skip


def look(order: int) -> tuple[str, str]:
    """Colour and marker; the markers shift with every round of colours, so that 56 differ."""
    rounds, colour = divmod(order, len(COLOURS))
    return COLOURS[colour], MARKERS[(order + rounds) % len(MARKERS)]
