"""What a paper takes from the report: every model's figures as CSV, and a table for LaTeX."""

import csv
import io
import math
from collections.abc import Sequence
from itertools import groupby
from string import Template
from typing import Any

from tandem.report.analysis import Analysis, Comparison, ModelResult
from tandem.report.markdown import Column, Report
from tandem.report.results import ACCURACY, BITS, PARAMS, PERPLEXITY, summary_columns
from tandem.report.statistics import Effect, Interval
from tandem.report.wording import interval_text, nats_text, p_text, perplexity_text
from tandem.shown import one_line

SAME = ["perplexity", "bits_per_byte", "accuracy", "effective_rank", "train_perplexity", "best_epoch"]
FIGURES = {"nll_nats": "nll", "seconds_alone_s": "seconds_alone", **dict(zip(SAME, SAME, strict=True))}
"""Names of columns in CSV, and of the figures over seeds in them; of perplexities the mean is geometric."""
BEST = {PERPLEXITY: ("perplexity", 1), BITS: ("bits_per_byte", 1), ACCURACY: ("accuracy", -1)}
"""Columns in LaTeX whose best mean is bold: their figure, and the sign that makes the best the lowest."""
LATEX = {
    **{sign: rf"\{sign}" for sign in "{}#$%&_"},
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # after the end of a row they would belong to it
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
    **{"<": "$<$", ">": "$>$", "|": "$|$", "`": r"\textasciigrave{}", "–": r"\textendash{}", '"': "''"},
    **{"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "→": r"$\to$", "∞": r"$\infty$", "†": r"$\dagger$"},
}
"""What stands for a character, so that none acts as a command."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a text begins with that spreadsheets compute."""
TABLE = Template(r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{$caption}
\begin{tabular}{l$right}
\toprule
$heads
\midrule
$rows
\bottomrule
\end{tabular}
$below\end{table}
""")


def comparison_figures(c: Comparison | None) -> dict[str, Any]:
    """The figures of a comparison by their names in tables; differences are second less first."""
    effect, power = (c.effect, c.power) if c else (Effect({}), None)
    row = {"difference_nats": effect.difference} | _bounds("difference_nats", effect.interval)
    row |= {"basis": c and effect.basis, "common_seeds": c and len(effect.by_seed), "df": effect.df}
    row |= {"p": effect.p, "p_holm": c and c.corrected_p, "verdict": c and str(c.verdict)}
    return row | {"detectable_nats": power and power.detectable, "seeds_needed": power and power.seeds}


def _bounds(name: str, interval: Interval | None) -> dict[str, Any]:
    return dict(zip((f"{name}_low", f"{name}_high"), interval or (None, None), strict=True))


def csv_table(analysis: Analysis) -> str:
    """A row for each model, in plain numbers, and its comparison with what has the lowest perplexity."""
    rows, written = [_row(analysis, model) for model in analysis.models.values()], io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerows([rows[0], *(map(_cell, row.values()) for row in rows)])
    return written.getvalue()


def _cell(value: Any) -> Any:
    """A value as a spreadsheet shows it: a text on one line, of which none is a formula to it."""
    if not isinstance(value, str):
        return value
    return f"'{one_line(value)}" if value.startswith(FORMULA) else one_line(value)


def _row(analysis: Analysis, m: ModelResult) -> dict[str, Any]:
    c = analysis.compare(analysis.choice.best.name, m.name) if analysis.choice else None
    names = ("name", "kind", "recipe", "variant", "context_layers", "token_layers", "total_parameters")
    row = {name: getattr(m, name) for name in names}
    row |= {"runs": len(m.runs), "audit_failed": analysis.untrusted(m.name), "compared_with": c and c.a}
    for name, of in FIGURES.items():
        figure = getattr(m, of)
        row |= {f"{name}_mean": figure and figure.mean, f"{name}_sd": figure and figure.sd}
        row |= _bounds(name, figure and figure.interval)
    return row | comparison_figures(c)


def latex(text: str) -> str:
    """A text as LaTeX shows it, none of its characters a command."""
    return "".join(LATEX.get(sign, sign) for sign in one_line(text)).replace("--", "-{}-")


def latex_table(report: Report) -> str:
    """A table for booktabs: mean ± standard deviation, the best mean of a column bold, also a baseline's."""
    models, texts = [*report.analysis.models.values()], report.texts
    columns = [PARAMS, *BEST, summary_columns(report)[-1]]
    best = {column: _lowest(models, *of) for column, of in BEST.items()}
    said = {m.name: text for m in models if (text := _intervals(report, m))}
    marks = {name: rf"\textsuperscript{{{place}}}" for place, name in enumerate(said, 1)}

    def cell(column: Column[ModelResult], m: ModelResult) -> str:
        shown = latex(column.cell(m))
        return rf"\textbf{{{shown}}}" if m.name in best.get(column, ()) else shown

    def row(m: ModelResult) -> str:
        name = latex(report.name(m.name)) + marks.get(m.name, "")
        return " & ".join([name, *(cell(column, m) for column in columns)]) + r" \\"

    groups = ["\n".join(map(row, group)) for _, group in groupby(models, lambda m: (m.baseline, m.variant))]
    below = [f"{marks[name]} {latex(text)}\\par\n" for name, text in said.items()]
    below += [latex(texts("audit.mark")) + "\n"] * any(report.analysis.untrusted(m.name) for m in models)
    return TABLE.substitute(
        caption=latex(texts("latex.caption", experiment=report.analysis.experiment)),
        right="r" * len(columns),
        heads=" & ".join(map(latex, [texts("column.config"), *map(report.head, columns)])) + r" \\",
        rows="\n\\midrule\n".join(groups),
        below="".join(["\\par\\smallskip\\raggedright\\footnotesize\n"] * bool(below) + below),
    )


def _lowest(models: Sequence[ModelResult], figure: str, sign: int) -> set[str]:
    """Names of the models with the best mean."""
    means = {m.name: sign * found.mean for m in models if (found := getattr(m, figure))}
    return {name for name, found in means.items() if found == min(means.values()) and math.isfinite(found)}


def _intervals(report: Report, m: ModelResult) -> str:
    """The interval of a model's perplexity, and that of its difference from the best configuration."""
    texts, choice, said = report.texts, report.analysis.choice, []
    if m.perplexity and m.perplexity.interval:
        said.append(texts("latex.interval", interval=interval_text(m.perplexity.interval, perplexity_text)))
    c = report.analysis.compare(choice.best.name, m.name) if choice else None
    if c and c.effect.interval:
        difference = f"{nats_text(c.effect.difference)} {interval_text(c.effect.interval)}"
        said.append(
            texts(f"latex.{c.effect.basis}", name=c.a, p=p_text(c.corrected_p), difference=difference)
        )
    return texts("sentence_separator").join(said)
