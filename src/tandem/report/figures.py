"""The report's figures: what each shows. They carry no title, since their captions stand in the report.

Labels such as `@epoch` are keys, put into words in the finished SVG (see `drawing`).
"""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tandem.objectives.original import Phase1Iteration
from tandem.report.drawing import INK, draw_curves, drawn_svg, finish, legend, look
from tandem.report.memory import SHARES
from tandem.report.results import Analysis, ModelResult
from tandem.report.statistics import MIN_SEEDS, perplexity
from tandem.report.wording import Texts, count_short, perplexity_text

WIDE = 2.0
"""Times the lowest perplexity that the highest may be, before a logarithmic axis shows them."""
NEAR = 1.5
"""Times above the highest or below the lowest configuration that a baseline may lie to be drawn with them."""
SIDE_BY_SIDE, MANY, LETTERS = 5, 12, 64
"""Up to so many configurations have their mean written beside it, and above it; so many letters of their
names have room on one line."""
LEAST_CHANGE = 1e-4
"""Below it a context's memory is not drawn: rounding would fill most of the figure."""


def draw_figures(analysis: Analysis, texts: Texts) -> dict[str, str]:
    """Every figure that the records have data for, as {name: SVG document}."""
    drawings: dict[str, Callable[[Axes, Analysis], bool]] = {
        "validation_perplexity": _validation_perplexity,
        "phase1_convergence": _phase1_convergence,
        "phase1_loss": _phase1_loss,
        "phase1_prediction": _phase1_prediction,
        "learning_curves": _learning_curves,
        "memory": _memory,
        "perplexity_parameters": _perplexity_parameters,
    }
    figures = {name: drawn_svg(name, draw, analysis, texts) for name, draw in drawings.items()}
    return {name: svg for name, svg in figures.items() if svg is not None}


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
        mean = top = perplexity(c.nll.mean)
        axes.plot([place - 0.12], [mean], _marker(analysis, c), color=colour, ms=7)
        if c.nll.interval is not None and len(values) >= MIN_SEEDS:
            low, top = (perplexity(end) for end in c.nll.interval)
            axes.errorbar(
                [place - 0.12], [mean], [[mean - low], [top - mean]], color=colour, capsize=4, lw=1.6
            )
        if len(shown) <= SIDE_BY_SIDE:
            axes.annotate(
                perplexity_text(mean), (place - 0.12, mean), (-9, 0), textcoords="offset points",
                ha="right", va="center", fontsize=8.5, color=INK,
            )  # fmt: skip
        elif len(shown) <= MANY:  # no room beside the mean, but above it and its interval
            axes.annotate(
                perplexity_text(mean), (place, max(top, *values)), (0, 5), textcoords="offset points",
                ha="center", va="bottom", fontsize=8, color=INK,
            )  # fmt: skip
    _name_ticks(axes, [c.name for c in shown])
    axes.set_xlim(-0.6, len(shown) - 0.4)
    _logarithmic_if_wide(axes, shown)
    if shown:
        _baseline_lines(axes, analysis)
    axes.set_ylabel("@validation_perplexity")
    return bool(shown)


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
    near = {
        b.name: b.mean_perplexity
        for b in analysis.baselines
        if b.mean_perplexity is not None and low / NEAR < b.mean_perplexity < high * NEAR
    }
    for mean in near.values():
        axes.axhline(mean, color=INK, lw=1, ls=(0, (4, 2)), alpha=0.75, zorder=0.5)
    axes.autoscale_view()
    places = sorted(near.items(), key=lambda item: item[1])
    to_axes = axes.transScale + axes.transLimits  # heights as shares of the axis, whatever its scale
    height = -1.0
    for name, mean in places:  # from below, each label clear of the last
        height = max(float(to_axes.transform((0, mean))[1]), height + 1 / 18)
        axes.annotate(
            f"{name} {perplexity_text(mean)}", (1.01, height), xycoords="axes fraction",
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
        drawn |= draw_curves(axes, [c for c in curves if c], *look(order), depth.name)
    axes.set_xlabel("@iteration")
    finish(axes)
    return drawn


def _phase1_prediction(axes: Axes, analysis: Analysis) -> bool:
    """Training only: what validation would be beside it was measured in another way, and at the end."""
    drawn = False
    for order, result in enumerate(analysis.predictions):
        curves = [{e.epoch: e.train_nll_nats for e in p.history} for p in result.phase1.values()]
        drawn |= draw_curves(axes, [c for c in curves if c], *look(order), result.name)
    axes.set_xlabel("@epoch")
    axes.set_ylabel("@training_nll")
    finish(axes)
    return drawn


def _memory(axes: Axes, analysis: Analysis) -> bool:
    """The mean over seeds; a band from the lowest seed to the highest."""
    lowest, highest, longest = 1.0, 1.0, 1
    for order, memory in enumerate(analysis.memories):
        colour, marker = look(order)
        distances = [point.distance for point in memory.points]
        means = [point.mean if point.mean > 0 else math.nan for point in memory.points]
        axes.plot(distances, means, color=colour, marker=marker, ms=4.5, label=memory.name)
        if len(memory.seeds) > 1:
            low, high = (
                [max(end, LEAST_CHANGE) for end in ends]
                for ends in ([point.low for point in memory.points], [point.high for point in memory.points])
            )
            axes.fill_between(distances, low, high, color=colour, alpha=0.18, lw=0)
        lowest = min([lowest, *(point.mean for point in memory.points)])
        highest = max([highest, *(point.high for point in memory.points)])
        longest = max(longest, memory.measured_to)
    for share in SHARES:
        axes.axhline(share, color=INK, lw=0.9, ls=(0, (4, 2)), alpha=0.75, zorder=0.5)
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)  # a logarithm that has room for distance 0
    axes.set_xlim(-0.3, 1.2 * longest)
    axes.xaxis.set_major_locator(FixedLocator([0, *(2**i for i in range(int(math.log2(longest)) + 1))]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_yscale("log")
    axes.set_ylim(max(lowest / 1.5, LEAST_CHANGE), 1.4 * highest)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("@distance")
    axes.set_ylabel("@change")
    legend(axes)
    return bool(analysis.memories)


def _learning_curves(axes: Axes, analysis: Analysis) -> bool:
    """Validation solid, training dotted; each seed thin, their mean thick."""
    drawn = False
    for c in analysis.configurations:
        colour, marker = _colour(analysis, c), _marker(analysis, c)
        histories = [t.history for t in c.training.values() if t.history]
        validation = [{e.epoch: perplexity(e.validation_nll_nats) for e in h} for h in histories]
        training = [{e.epoch: perplexity(e.train_nll_nats) for e in h} for h in histories]
        drawn |= draw_curves(axes, validation, colour, marker, c.name)
        draw_curves(axes, training, colour, style=(0, (1, 1.6)))
    if drawn:
        axes.plot([], [], color=INK, label="@validation")
        axes.plot([], [], color=INK, ls=(0, (1, 1.6)), label="@training")
    axes.set_xlabel("@epoch")
    axes.set_ylabel("@perplexity")
    _logarithmic(axes)
    finish(axes)
    return drawn


def _perplexity_parameters(axes: Axes, analysis: Analysis) -> bool:
    shown = [c for c in analysis.configurations if _finite(c) and c.parameters is not None]
    crowded = bool(analysis.variants)  # variants of one size stand over each other
    for c in shown:
        if c.nll is None or c.parameters is None:
            continue
        mean, size = perplexity(c.nll.mean), c.parameters.total
        colour = _colour(analysis, c)
        values = _finite_perplexities(c)
        axes.plot([size] * len(values), values, "_", color=colour, alpha=0.7, ms=10, mew=1.4)
        axes.plot([size], [mean], _marker(analysis, c), color=colour, ms=7)
        if crowded:
            axes.plot([], [], _marker(analysis, c), color=colour, label=c.name)
        else:
            axes.annotate(c.name, (size, mean), (9, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count_short(x)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(x=0.12, y=0.12)
    _logarithmic_if_wide(axes, shown)
    axes.set_xlabel("@total_parameters")
    axes.set_ylabel("@validation_perplexity")
    legend(axes)
    return bool(shown)


def _logarithmic_if_wide(axes: Axes, shown: Sequence[ModelResult]) -> None:
    values = [value for c in shown for value in _finite_perplexities(c)]
    if values and max(values) > WIDE * min(values):
        _logarithmic(axes)


def _logarithmic(axes: Axes) -> None:
    """Perplexities on a logarithmic y axis, as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.yaxis.set_minor_formatter(
        FuncFormatter(lambda y, _: f"{y:,.0f}" if _leading(y) in (2, 3, 5) else "")
    )


def _finite(c: ModelResult) -> bool:
    return c.rankable and math.isfinite(c.mean_perplexity or math.inf)


def _finite_perplexities(c: ModelResult) -> list[float]:
    """Of every seed that has one."""
    return [v.perplexity for v in c.validation.values() if math.isfinite(v.perplexity)]


def _colour(analysis: Analysis, c: ModelResult) -> str:
    return look(_order(analysis, c))[0]


def _marker(analysis: Analysis, c: ModelResult) -> str:
    return look(_order(analysis, c))[1]


def _order(analysis: Analysis, c: ModelResult) -> int:
    return [other.name for other in analysis.configurations].index(c.name)


def _leading(value: float) -> int:
    """First digit of a positive number."""
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9))
