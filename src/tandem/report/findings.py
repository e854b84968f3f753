"""Sections of what follows from the results: comparisons, baselines, and which configuration to use."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from tandem.baselines import BASELINES
from tandem.records import Manifest
from tandem.report import sentences, wording
from tandem.report.analysis import Comparison, ModelResult, own_settings
from tandem.report.markdown import Column, Report, fenced, spread_column, warning, word_column
from tandem.report.phase1 import phase1_report
from tandem.report.results import ACCURACY, BEST_EPOCH, BITS, PARAMS, PERPLEXITY, TRAIN_PERPLEXITY
from tandem.report.statistics import Effect, mean, perplexity
from tandem.report.wording import NONE, Message, code, interval_text, literal, perplexity_text
from tandem.settings import preset_names
from tandem.shown import command

LONGEST_TABLE = 12
"""Rows. Longer tables of all pairs are folded away beside variants, whose own pairs have a table too."""


def findings(report: Report) -> Iterator[str]:
    yield report.heading("findings")


# Models against each other


def standing(report: Report) -> Iterator[str]:
    analysis, choice, texts = report.analysis, report.analysis.choice, report.texts
    yield report.heading("standing", 3)
    if choice is None:
        yield texts.say(sentences.no_conclusion(analysis))
        return
    yield texts.say(sentences.standing(analysis, choice))
    if analysis.comparisons:
        longest = LONGEST_TABLE if analysis.variants else None
        yield _effects_table(report, "comparison", analysis.comparisons, longest)
        yield texts("comparison_note")
        yield from _seeds_only(report, analysis.comparisons)
        yield _paired_table(report, longest)
        yield texts("paired_note")


def _pair_column(report: Report) -> Column[Comparison]:
    return Column("comparison", lambda c: f"{report.name(c.a)} → {report.name(c.b)}")


def _effects_table(
    report: Report, name: str, comparisons: Sequence[Comparison], longest: int | None = None
) -> str:
    """Pairs over seeds and documents: what the verdicts rest on."""
    texts = report.texts

    def interval(c: Comparison) -> str:
        shown = interval_text(c.effect.interval)
        seeds_only = c.effect.basis == "seeds" and c.effect.interval is not None
        return texts("seeds_only", interval=shown) if seeds_only else shown

    def ratio(c: Comparison) -> str:
        shown = wording.ratio_text(c.effect.difference)
        around = interval_text(c.effect.interval, wording.ratio_text)
        return f"{shown} {around}" if c.effect.interval else shown

    columns: list[Column[Comparison]] = [
        _pair_column(report),
        Column("difference", lambda c: wording.nats_text(c.effect.difference)),
        Column("crossed_interval", interval),
        Column("ratio", ratio),
        word_column(
            "by_seed", lambda c: ", ".join(map(wording.nats_text, c.effect.by_seed.values())) or NONE
        ),
        Column("df", lambda c: wording.number(c.effect.df, 1 if (c.effect.df or 0) < 100 else 0)),
        Column("p", lambda c: wording.p_text(c.corrected_p)),
        word_column("verdict", lambda c: texts(f"verdict.{c.verdict}", name=c.b)),
        Column("detectable", lambda c: wording.power_texts(c.power)[0]),
        Column("seeds_needed", lambda c: wording.power_texts(c.power)[1]),
    ]
    return report.table(name, columns, comparisons, longest=longest)


def _paired_table(report: Report, longest: int | None) -> str:
    """Every pair of configurations over seeds, on this validation set; descriptive."""

    def before_and_after(
        key: str,
        test: Callable[[Comparison], Effect],
        text: Callable[[float], str],
        change: Callable[[float | None], str],
    ) -> list[Column[Comparison]]:
        """Both means and their difference, and its interval."""

        def cell(c: Comparison) -> str:
            a, b = map(text, test(c).means or ()) if test(c).means else (NONE, NONE)
            return f"{a} → {b} ({change(test(c).difference)})"

        return [Column(key, cell), Column("interval", lambda c: interval_text(test(c).interval, change))]

    def points(share: float | None) -> str:
        return wording.signed(None if share is None else 100 * share)

    def of_nll(nll: float) -> str:
        return perplexity_text(perplexity(nll))

    columns: list[Column[Comparison]] = [
        _pair_column(report),
        *before_and_after("perplexity_change", lambda c: c.nll, of_nll, wording.change_text),
        Column("p", lambda c: wording.p_text(c.paired_p)),
        *before_and_after("accuracy_change", lambda c: c.accuracy, wording.percent, points),
        Column("common_seeds", lambda c: report.texts.join(c.nll.by_seed)),
    ]
    return report.table("paired", columns, report.analysis.comparisons, longest=longest)


def _seeds_only(report: Report, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Says where intervals do not cover the choice of the text."""
    if pairs := [sentences.pair_text(c) for c in comparisons if c.effect.basis == "seeds"]:
        yield warning(report.texts("seeds_only_note", pairs=pairs))


def depth(report: Report) -> Iterator[str]:
    yield report.heading("depth", 3)
    yield report.list_of(sentences.effect_findings(report.analysis)) or report.texts("effect.none")


def variants(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts
    if len(analysis.variants) < 2:
        return
    yield report.heading("variants", 3)
    if analysis.manifest:
        own = {variant: changed_settings(analysis.manifest, variant) for variant in analysis.variants}
        yield texts("variants.lead")
        yield report.list_of(
            Message(
                f"variants.{'changes' if changed else 'unchanged'}", variant=v, changes=[*map(code, changed)]
            )
            for v, changed in own.items()
        )
    pairs = sentences.variant_pairs(analysis)
    if not pairs:
        yield texts("variants.none")
        return
    if reference := sentences.reference_variant(analysis):
        yield texts("variants.reference", reference=reference)
    yield report.list_of(sentences.variant_findings(analysis))
    yield _effects_table(report, "variants", pairs)
    yield texts("variants.note")


def changed_settings(manifest: Manifest, variant: str) -> list[str]:
    """What a variant sets differently from the common settings, such as `phase2.lr = 0.002`."""
    own = wording.flatten(own_settings(manifest, variant))
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in own.items()]


def vs_baselines(report: Report) -> Iterator[str]:
    analysis, choice, texts = report.analysis, report.analysis.choice, report.texts
    if not analysis.baselines:
        return

    def what(m: ModelResult) -> str:
        """What it is, in the words of the report or of its own file; the name of an unknown kind."""
        own = BASELINES[m.kind].description if m.kind in BASELINES else literal(m.kind)
        return texts.of(f"baseline.{m.kind}") or own

    columns: list[Column[ModelResult]] = [
        Column("baseline", lambda m: report.name(m.name)),
        *(PARAMS, PERPLEXITY, BITS, ACCURACY, TRAIN_PERPLEXITY, BEST_EPOCH),
        spread_column("seconds", lambda m: m.seconds_alone, wording.seconds_text),
        word_column("what", what),
    ]
    yield report.heading("vs_baselines")
    yield texts("vs_baselines_lead")
    yield report.table("baselines", columns, analysis.baselines)
    yield from report.figure("perplexity_by_seconds")
    yield from map(texts.say, sentences.still_improving(analysis.baselines))
    if choice is None or not analysis.baseline_comparisons:
        yield texts("vs_baselines_none")
        return
    yield report.list_of(sentences.baseline_findings(analysis, choice))
    others = sentences.against_others(analysis, choice.best, choice.recommended)
    yield _effects_table(report, "vs_baselines", [*others, *sentences.against_controls(analysis)])
    yield texts("vs_baselines_note")
    yield from _seeds_only(report, analysis.baseline_comparisons)


# Recommendation


def recommendation(report: Report) -> Iterator[str]:
    yield report.heading("recommendation")


def recommended(report: Report) -> Iterator[str]:
    choice = report.analysis.choice
    if choice is None:
        yield f"### {report.texts('recommended.none')}"
        return
    reasons = sentences.recommendation(report.analysis, choice)
    yield from _configuration(report, "recommended", choice.recommended, reasons)


def alternative(report: Report) -> Iterator[str]:
    choice = report.analysis.choice
    if choice is None:
        return
    reasons = sentences.alternative_findings(report.analysis, choice)
    if choice.alternative is not None:
        yield from _configuration(report, "alternative", choice.alternative, reasons)
    else:
        yield report.heading("no_alternative", 3)
        yield report.list_of(reasons)


def _configuration(report: Report, name: str, c: ModelResult, reasons: Iterable[Message]) -> Iterator[str]:
    """A configuration to choose: how to select it, why, and its main figures."""
    depths = {"context": str(c.context_layers), "token": str(c.token_layers)}
    yield report.heading(name, 3, name=c.name, **depths)
    yield _selecting_settings(report, c)
    figures = [
        Message("choice.perplexity", value=perplexity_text(mean(c.perplexity))),
        Message("choice.accuracy", value=wording.percent(mean(c.accuracy))),
        Message("choice.parameters", value=wording.count_short(c.total_parameters)),
        *phase1_report(c.recipe).facts(c),
    ]
    yield report.list_of([*reasons, *figures])


def _selecting_settings(report: Report, c: ModelResult) -> str:
    """The settings that select it; `num_layers` sets both depths where they are equal."""
    lines = [f"context_layers = {c.context_layers}", f"token_layers = {c.token_layers}"]
    if c.context_layers == c.token_layers:
        lines += [report.texts("code.or"), f"num_layers = {c.context_layers}"]
    return fenced("\n".join(lines), "python")


def avoid(report: Report) -> Iterator[str]:
    if report.analysis.choice is None:
        return
    yield report.heading("avoid", 3)
    worse = (
        Message("avoid.shown_worse", name=c.name, than=than, perplexity=perplexity_text(mean(c.perplexity)))
        for c, than in report.analysis.choice.avoid
    )
    yield report.list_of(worse) or f"- {report.texts('avoid.none')}"


def conclusions(report: Report) -> Iterator[str]:
    yield report.heading("conclusions")
    said = map(report.texts.say, sentences.conclusions(report.analysis))
    yield "\n".join(f"{place}. {item}" for place, item in enumerate(said, 1))


def change(report: Report) -> Iterator[str]:
    """How to select the recommended configuration, and how to train it alone."""
    if report.analysis.choice is None:
        return
    c, texts = report.analysis.choice.recommended, report.texts
    yield report.heading("change")
    yield texts("change.settings", name=c.name)
    yield _selecting_settings(report, c)
    yield texts("change.command")
    yield fenced(train_command(c, report.analysis.experiment), "sh")


def train_command(c: ModelResult, experiment: str) -> str:
    """The command that trains this configuration alone.

    It names the experiment's settings: the preset of that name, or else the file that an experiment takes
    its name from.
    """
    settings = experiment if experiment in preset_names() else f"{experiment}.yaml"
    variant = () if c.variant is None else ("--variant", c.variant)
    depths = ("--context-layers", c.context_layers, "--token-layers", c.token_layers)
    return command("tandem", "train", settings, *variant, *depths)
