"""The report in order: which section holds what. Words come from the texts, figures from the analysis."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import yaml

from tandem.report import markdown, sentences, tables, wording
from tandem.report.analysis import Choice, changed_settings, choose
from tandem.report.markdown import bullets, fenced, fold, make_table, numbered, warning
from tandem.report.original import as_the_original, load_original
from tandem.report.phase1 import (
    ORIGINAL,
    PHASE1_REPORTS,
    all_columns,
    phase1_report,
    phase1_reports_of,
    shared_unit,
)
from tandem.report.results import Analysis, Comparison, ModelResult
from tandem.report.statistics import mean
from tandem.report.wording import NONE, Message, Texts, Value, code, literal
from tandem.settings import preset_names
from tandem.shown import command

DEFINITIONS = (
    "config variant baseline params phase1 rank perplexity bits accuracy "
    "plus_minus interval verdict efficiency time"
)
"""Keys of the definitions in order; those of `phase1` are its recipes'."""
LONGEST_TABLE = 12
"""Rows. Longer tables of all pairs are folded away beside variants, whose own pairs have a table too."""


@dataclass(frozen=True)
class Report:
    """What every section is written from."""

    analysis: Analysis
    choice: Choice | None
    """None where nothing can be recommended."""
    texts: Texts
    figures: Set[str]
    """Names of the figures there are."""

    def heading(self, section: str, level: int = 2, **values: str) -> str:
        """The heading of a section, from the text `section.NAME`."""
        return f"{'#' * level} {self.texts(f'section.{section}', **values)}"

    def list_of(self, messages: Iterable[Message]) -> str:
        """The messages as a list."""
        return bullets(map(self.texts.say, messages))

    def figure(self, name: str) -> Iterator[str]:
        """The figure, if there is one."""
        if name in self.figures:
            yield markdown.figure(f"{name}{self.texts.suffix}.svg", self.texts(f"figure.{name}"))

    def findings(self, messages: Iterable[Message]) -> Iterator[str]:
        """The findings of a section, if there are any."""
        if said := self.list_of(messages):
            yield self.texts("findings_lead")
            yield said


Section = Callable[[Report], Iterable[str]]
"""Gives the blocks of a section, its heading first; none: there is no such section in this report."""


@dataclass(frozen=True)
class Document:
    """A whole report in Markdown."""

    language: str
    title: str
    subtitle: str
    sections: Mapping[str, str]
    """By the name of the function that wrote it, which is its anchor in the page."""
    footer: str

    def __str__(self) -> str:
        parts = [f"# {self.title}", self.subtitle, *self.sections.values(), "---", f"*{self.footer}*"]
        return "\n\n".join(parts) + "\n"


def compose(analysis: Analysis, texts: Texts, figures: Set[str]) -> Document:
    """The whole report; `figures` names the figures there are."""
    report = Report(analysis, choose(analysis), texts, figures)
    date = max(r.finished_at for r in analysis.records)[:10]
    written = {section.__name__: "\n\n".join(section(report)) for section in SECTIONS}
    return Document(
        language=texts.language,
        title=texts("title", experiment=literal(analysis.experiment)),
        subtitle=texts("subtitle", date=date),
        sections={name: text for name, text in written.items() if text},
        footer=texts("footer", date=date),
    )


# Overview and results


def overview(report: Report) -> Iterator[str]:
    analysis, choice, texts = report.analysis, report.choice, report.texts
    yield report.heading("overview")
    yield from (warning(texts.say(message)) for message in sentences.audit_warnings(analysis))
    purpose = [Message("overview.purpose", {"count": str(len(analysis.configurations))})]
    yield texts.say(*purpose, *([Message("overview.named")] if analysis.variants else []))
    if choice is None:
        yield warning(texts.say(sentences.no_conclusion(analysis)))
    else:
        messages = [
            sentences.standing(analysis, choice),
            *sentences.recommendation(analysis, choice),
            *sentences.baseline_summary(analysis, choice),
        ]
        yield f"> {texts.say(*messages)}"
    data = analysis.data[0][0]
    seeds = sorted({r.seed for r in analysis.records if r.seed is not None})
    facts: dict[str, Value] = {
        "configurations": [c.name for c in analysis.configurations] or [NONE],
        **({"variants": analysis.variants} if analysis.variants else {}),
        "recipe": [*map(code, dict.fromkeys(c.recipe for c in analysis.configurations))] or [NONE],
        "baselines": [b.name for b in analysis.baselines] or [NONE],
        "seeds": wording.seeds_text(seeds),
        "devices": sorted({literal(e.device_name) for e, _ in analysis.environments}),
        "train_tokens": f"{data.train_tokens:,}",
        "validation_tokens": f"{data.validation_tokens:,}",
        "vocabulary": f"{data.vocab_size:,}",
        **{name: _sizes(analysis, name) for name in ("embed_dim", "context_dim")},
    }
    yield bullets(texts(f"overview.{key}", value=value) for key, value in facts.items())


def _sizes(analysis: Analysis, name: str) -> list[str]:
    """A size of the configurations; several where variants differ in it."""
    found = (getattr(r, name) for r in analysis.records)
    return [*map(str, dict.fromkeys(size for size in found if size is not None))] or [NONE]


def summary(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts
    yield report.heading("summary")
    for message in (*sentences.audit_warnings(analysis), *sentences.warnings(analysis)):
        yield warning(texts.say(message))
    yield str(tables.summary_table(analysis, texts, report.choice))
    yield from report.figure("validation_perplexity")


def original(report: Report) -> Iterator[str]:
    """Stands beside our own table, so that one sees both."""
    analysis, texts, printed = report.analysis, report.texts, load_original()
    ours = list(as_the_original(analysis).values())
    yield report.heading("original")
    if analysis.configurations and not ours:
        yield texts("original.none")
        return
    about = {"title": printed.title, "date": printed.date, "device": printed.device}
    yield warning(texts("original.label", **about, data=printed.data, tokenizer=printed.tokenizer))
    if ours and ours[0].variant is not None:
        yield texts("original.variant", variant=ours[0].variant)
    yield str(tables.original_table(analysis, texts))
    yield texts("original.caveats")
    yield bullets(printed.caveats[texts.language])
    yield texts("original.claims")
    yield str(tables.claims_table(analysis, texts))


# Details


def details(report: Report) -> Iterator[str]:
    yield report.heading("details")


def phase1(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts
    yield report.heading("phase1", 3)
    for recipe, of_recipe, results in phase1_reports_of(analysis):
        if lead := texts.say(*of_recipe.lead(analysis)):
            yield lead
        columns = all_columns(of_recipe, analysis, texts)
        yield str(make_table(texts, of_recipe.caption, columns, results, recipe=code(recipe)))
        yield from report.findings(of_recipe.findings(results, analysis))
        for name in of_recipe.figures:
            yield from report.figure(name)


def phase2(report: Report) -> Iterator[str]:
    yield report.heading("phase2", 3)
    yield str(tables.phase2_table(report.analysis, report.texts, report.choice))
    yield from report.findings(sentences.phase2_findings(report.analysis, report.choice))
    yield from report.figure("learning_curves")


def efficiency(report: Report) -> Iterator[str]:
    yield report.heading("efficiency", 3)
    yield str(tables.efficiency_table(report.analysis, report.texts, report.choice))
    yield from report.figure("perplexity_parameters")


def scans(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts
    if analysis.scans:
        yield report.heading("scans", 3)
        yield texts("scan.meaning")
        methods = dict.fromkeys(scan.method for result in analysis.scans for scan in result.scans)
        yield from filter(None, (texts.of(f"scan.method.{method}") for method in methods))
        yield str(tables.scans_table(analysis, texts))


def memory(report: Report) -> Iterator[str]:
    if report.analysis.memories:
        yield report.heading("memory", 3)
        yield report.texts("memory.meaning")
        yield bullets(sentences.memory_sentences(report.analysis, report.texts))
        yield from report.figure("memory")


# Findings


def findings(report: Report) -> Iterator[str]:
    yield report.heading("findings")


def standing(report: Report) -> Iterator[str]:
    analysis, choice, texts = report.analysis, report.choice, report.texts
    yield report.heading("standing", 3)
    if choice is None:
        yield texts.say(sentences.no_conclusion(analysis))
        return
    yield texts.say(sentences.standing(analysis, choice))
    if comparisons := analysis.comparisons:
        longest = LONGEST_TABLE if analysis.variants else len(comparisons)
        yield fold(tables.effects_table(analysis, texts, "comparison", comparisons), texts, longest)
        yield texts("comparison_note")
        yield from _seeds_only(comparisons, texts)
        yield fold(tables.paired_table(analysis, texts), texts, longest)
        yield texts("paired_note")


def _seeds_only(comparisons: Sequence[Comparison], texts: Texts) -> Iterator[str]:
    """Says where intervals do not cover the choice of the text."""
    pairs = [sentences.pair_text(c) for c in comparisons if c.effect.basis == "seeds"]
    if pairs:
        yield warning(texts("seeds_only_note", pairs=pairs))


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
        yield bullets(
            texts(
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
    yield str(tables.effects_table(analysis, texts, "variants", pairs))
    yield texts("variants.note")


def vs_baselines(report: Report) -> Iterator[str]:
    analysis, choice, texts = report.analysis, report.choice, report.texts
    if not analysis.baselines:
        return
    yield report.heading("vs_baselines")
    yield texts("vs_baselines_lead")
    yield str(tables.baselines_table(analysis, texts))
    yield from map(texts.say, sentences.still_improving(analysis.baselines))
    if choice is None or not analysis.baseline_comparisons:
        yield texts("vs_baselines_none")
        return
    yield report.list_of(sentences.baseline_findings(analysis, choice))
    comparisons = [*sentences.against_others(analysis, choice), *sentences.against_controls(analysis)]
    yield str(tables.effects_table(analysis, texts, "vs_baselines", comparisons))
    yield texts("vs_baselines_note")
    yield from _seeds_only(analysis.baseline_comparisons, texts)


# Recommendation


def recommendation(report: Report) -> Iterator[str]:
    yield report.heading("recommendation")


def recommended(report: Report) -> Iterator[str]:
    choice = report.choice
    if choice is None:
        yield f"### {report.texts('recommended.none')}"
        return
    yield from _configuration(
        report, "recommended", choice.recommended, sentences.recommendation(report.analysis, choice)
    )


def alternative(report: Report) -> Iterator[str]:
    if report.choice is None:
        return
    reasons = sentences.alternative_findings(report.analysis, report.choice)
    if report.choice.alternative is not None:
        yield from _configuration(report, "alternative", report.choice.alternative, reasons)
    else:
        yield report.heading("no_alternative", 3)
        yield report.list_of(reasons)


def _configuration(report: Report, name: str, c: ModelResult, reasons: Iterable[Message]) -> Iterator[str]:
    """A configuration to choose: how to select it, why, and its main figures."""
    depths = {"context": str(c.context_layers), "token": str(c.token_layers)}
    yield report.heading(name, 3, name=c.name, **depths)
    yield fenced(_selecting_settings(c, report.texts), "python")
    figures = [
        Message("choice.perplexity", {"value": wording.perplexity_text(mean(c.perplexity))}),
        Message("choice.accuracy", {"value": wording.percent(mean(c.accuracy))}),
        Message("choice.parameters", {"value": wording.count_short(c.total_parameters)}),
        *phase1_report(c.recipe).facts(c),
    ]
    yield report.list_of([*reasons, *figures])


def _selecting_settings(c: ModelResult, texts: Texts) -> str:
    """The settings that select it; `num_layers` sets both depths where they are equal."""
    lines = [f"context_layers = {c.context_layers}", f"token_layers = {c.token_layers}"]
    if c.context_layers == c.token_layers:
        lines += [texts("code.or"), f"num_layers = {c.context_layers}"]
    return "\n".join(lines)


def avoid(report: Report) -> Iterator[str]:
    if report.choice is not None:
        yield report.heading("avoid", 3)
        yield report.list_of(sentences.avoid_findings(report.choice))


def conclusions(report: Report) -> Iterator[str]:
    yield report.heading("conclusions")
    yield numbered(map(report.texts.say, sentences.conclusions(report.analysis, report.choice)))


def change(report: Report) -> Iterator[str]:
    """How to select the recommended configuration, and how to train it alone."""
    if report.choice is None:
        return
    c, texts = report.choice.recommended, report.texts
    yield report.heading("change")
    yield texts("change.settings", name=c.name)
    yield fenced(_selecting_settings(c, texts), "python")
    yield texts("change.command" if c.variant is None else "change.command_variant")
    yield fenced(train_command(c, report.analysis.experiment), "sh")


def train_command(c: ModelResult, experiment: str) -> str:
    """The command that trains this configuration alone.

    A variant is one of the experiment's settings, so the command names them: the preset of that name, or
    else the file that an experiment takes its name from.
    """
    depths = ("--context-layers", c.context_layers, "--token-layers", c.token_layers)
    if c.variant is None:
        return command("tandem", "train", *depths)
    settings = experiment if experiment in preset_names() else f"{experiment}.yaml"
    return command("tandem", "train", settings, "--variant", c.variant, *depths)


# Where it all comes from


def audit(report: Report) -> Iterator[str]:
    analysis, texts, status = report.analysis, report.texts, report.analysis.audit
    yield report.heading("audit")
    if status.audited_at is None:
        yield texts("audit.none")
        return
    yield texts("audit.made", date=status.audited_at[:10])
    if status.checks:
        yield str(tables.audit_table(analysis, texts))
    if status.unrecomputed:
        yield texts("audit.unrecomputed", runs=[literal(run) for run in status.unrecomputed])
    if status.unaudited:
        yield warning(texts("audit.unaudited", runs=[literal(run) for run in status.unaudited]))


def runs(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts
    spent, alone = map(wording.seconds_text, (analysis.seconds_spent, analysis.seconds_alone))
    yield report.heading("runs")
    yield texts("runs.time", spent=spent, alone=alone, unit=shared_unit(analysis))
    if analysis.failed:
        yield str(tables.failures_table(analysis, texts))
    yield str(tables.runs_table(analysis, texts))


def provenance(report: Report) -> Iterator[str]:
    analysis, texts = report.analysis, report.texts
    yield report.heading("provenance")
    yield texts("provenance.source")
    yield fenced(texts("provenance.command"), "sh")
    yield str(tables.environment_table(analysis, texts))
    yield str(tables.data_table(analysis, texts))
    if analysis.manifest is None:
        yield texts("provenance.no_manifest")
        return
    settings = yaml.safe_dump(analysis.manifest.settings, sort_keys=False, allow_unicode=True, width=100)
    yield markdown.details(texts("provenance.settings"), fenced(settings.rstrip(), "yaml"))


def definitions(report: Report) -> Iterator[str]:
    """The terms of this report. The summary always has the columns of the original recipe."""
    analysis = report.analysis
    found = dict.fromkeys([PHASE1_REPORTS[ORIGINAL], *(one for _, one, _ in phase1_reports_of(analysis))])
    terms = {
        "variant": ["variant"] if analysis.variants else [],
        "phase1": [key for of_recipe in found for key in of_recipe.definitions],
    }
    keys = [key for name in DEFINITIONS.split() for key in terms.get(name, [name])]
    yield report.heading("definitions")
    yield bullets(report.texts(f"definition.{key}") for key in keys)


SECTIONS: list[Section] = [
    overview, summary, original,
    details, phase1, phase2, efficiency, scans, memory,
    findings, standing, depth, variants, vs_baselines,
    recommendation, recommended, alternative, avoid, conclusions, change,
    audit, runs, provenance, definitions,
]  # fmt: skip
"""The sections in order. Another one is a function more, here or in a program that extends the report."""
