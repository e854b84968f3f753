"""The report in order: which section holds what. Words come from the texts, figures from the analysis."""

from collections.abc import Iterable, Iterator, Sequence, Set

import yaml

from tandem.report import comparison_tables, phase1, tables
from tandem.report.beside import beside_messages, beside_summary
from tandem.report.blocks import (
    Block,
    Callout,
    Code,
    Details,
    Document,
    FigureBlock,
    Items,
    Paragraph,
    Section,
    Table,
)
from tandem.report.cells import folded
from tandem.report.choice import choose
from tandem.report.findings import (
    caveats,
    conclusions,
    effect_findings,
    pair_text,
    phase2_findings,
    recommendation_message,
    standing,
    still_improving,
)
from tandem.report.memory import memory_sentences
from tandem.report.original import load_original, models_of_recipe_original
from tandem.report.provenance import data_table, environment_table
from tandem.report.recommendation import change_blocks, recommendation_sections
from tandem.report.results import Analysis, Comparison
from tandem.report.variants import (
    overview_of_sizes,
    overview_of_variants,
    reference,
    variant_findings,
    variant_items,
)
from tandem.report.wording import NONE, Message, Texts, Value, literal, seconds_text, seeds_text

DEFINITIONS = (
    "config variant baseline params iterations convergence prediction rank memory perplexity bits accuracy "
    "plus_minus interval paired verdict efficiency time"
)
ROWS_UNFOLDED = 12
"""Longer tables of all pairs are folded away where variants make them long: their own pairs stand apart."""


def compose(analysis: Analysis, texts: Texts, figures: Set[str]) -> Document:
    """The whole report; `figures` names the figures there are."""
    writer, variants = _Writer(analysis, texts, figures), len(analysis.variants) > 1
    return Document(
        language=texts.language,
        title=texts("title_variants" if variants else "title", experiment=literal(analysis.experiment)),
        subtitle=texts("subtitle_variants" if variants else "subtitle", date=analysis.finished_at[:10]),
        sections=tuple(writer.sections()),
        footer=texts("footer", date=analysis.finished_at[:10]),
    )


class _Writer:
    """Holds what every section needs: the analysis, the choice that follows from it, the texts."""

    def __init__(self, analysis: Analysis, texts: Texts, figures: Set[str]) -> None:
        self.analysis = analysis
        self.choice = choose(analysis)
        self.texts = texts
        self.figures = figures

    def sections(self) -> Iterator[Section]:
        analysis, texts, choice = self.analysis, self.texts, self.choice
        yield self._section("overview", self._overview())
        yield self._section("summary", self._summary())
        yield self._section("original", self._original())  # beside our own table, so that one sees both
        yield self._section("details", [])
        yield self._section("phase1", self._phase1(), 3)
        yield self._section("phase2", self._phase2(), 3)
        yield self._section(
            "efficiency",
            [tables.efficiency_table(analysis, texts, choice), *self._figure("perplexity_parameters")],
            3,
        )
        if analysis.scans:
            yield self._section("scans", self._scans(), 3)
        if analysis.memories:
            yield self._section("memory", self._memory(), 3)
        yield self._section("findings", [])
        yield self._section("standing", self._standing(), 3)
        yield self._section("depth", self._depth(), 3)
        if len(analysis.variants) > 1:
            yield self._section("variants", self._variants(), 3)
        if analysis.baselines:
            yield self._section("beside", self._beside())
        yield self._section("recommendation", [])
        yield from recommendation_sections(analysis, choice, texts)
        yield self._section("conclusions", [self._items(conclusions(analysis, choice), ordered=True)])
        if choice is not None:
            yield self._section("change", change_blocks(analysis, choice, texts))
        yield self._section("audit", self._audit())
        yield self._section("runs", self._runs())
        yield self._section("provenance", self._provenance())
        there = {
            "variant": analysis.variants,
            "prediction": analysis.predictions,
            "memory": analysis.memories,
        }
        names = [name for name in DEFINITIONS.split() if there.get(name, True)]
        if analysis.predictions:
            names[names.index("params")] = "params_prediction"
        yield self._section("definitions", [Items([texts(f"definition.{name}") for name in names])])

    def _section(self, name: str, blocks: Iterable[Block], level: int = 2) -> Section:
        return Section(name, self.texts(f"section.{name}"), tuple(blocks), level)

    def _items(self, messages: Iterable[Message], ordered: bool = False) -> Items:
        return Items([self.texts.say(message) for message in messages], ordered)

    def _figure(self, name: str) -> Iterator[FigureBlock]:
        if name in self.figures:
            yield FigureBlock(name, self.texts(f"figure.{name}"))

    def _overview(self) -> Iterator[Block]:
        analysis, texts = self.analysis, self.texts
        yield from self._distrust()
        purpose = "overview.purpose_variants" if len(analysis.variants) > 1 else "overview.purpose"
        yield Paragraph(texts(purpose, count=str(len(analysis.configurations))))
        if self.choice is not None:
            messages = [
                standing(analysis, self.choice),
                recommendation_message(self.choice),
                *caveats(analysis, self.choice),
                *beside_summary(analysis, self.choice),
            ]
            yield Callout(texts("sentence_separator").join(map(texts.say, messages)), "result")
        else:
            yield Callout(texts.say(next(conclusions(analysis, None))), "warning")
        data = analysis.data[0][0]
        facts: dict[str, Value] = {
            "configurations": [c.name for c in analysis.configurations] or [NONE],
            **overview_of_variants(analysis, texts),
            "baselines": [b.name for b in analysis.baselines] or [NONE],
            "seeds": seeds_text(analysis.seeds),
            "devices": sorted({literal(e.device_name) for e, _ in analysis.environments}),
            "train_tokens": f"{data.train_tokens:,}",
            "validation_tokens": f"{data.validation_tokens:,}",
            "vocabulary": f"{data.vocab_size:,}",
            **overview_of_sizes(analysis, texts),
        }
        yield Items([texts(f"overview.{key}", value=value) for key, value in facts.items()])

    def _summary(self) -> Iterator[Block]:
        analysis, texts = self.analysis, self.texts
        yield from self._distrust()
        for key in self._warnings():
            yield Callout(texts.say(key), "warning")
        yield tables.summary_table(analysis, texts, self.choice)
        yield from self._figure("validation_perplexity")

    def _distrust(self) -> Iterator[Block]:
        """What the audit says against these records, for the top of the report and of its figures."""
        trust = self.analysis.trust
        if trust.failed:
            runs = [literal(run) for run in trust.untrusted]
            key = "audit.failed_all" if self.analysis.all_untrusted else "audit.failed"
            yield Callout(self.texts(key, checks=trust.failed, runs=runs), "warning")
        if trust.warned:
            yield Callout(self.texts("audit.warned", checks=trust.warned), "warning")

    def _warnings(self) -> Iterator[Message]:
        analysis = self.analysis
        if not analysis.comparable:
            yield Message("warning.not_comparable")
        if len(analysis.environments) > 1:
            yield Message("warning.environments", {"count": str(len(analysis.environments))})
        if analysis.failed:
            yield Message("warning.failed", {"runs": [literal(r.run) for r in analysis.failed]})
        if analysis.left_out:
            yield Message("warning.left_out", {"runs": [literal(r.run) for r in analysis.left_out]})
        if analysis.missing or analysis.missing_baselines:
            missing: dict[str, list[str]] = {}
            for name, seed in analysis.missing:
                missing.setdefault(name, []).append(str(seed))
            runs = [f"{literal(name)} (seed {', '.join(seeds)})" for name, seeds in missing.items()]
            runs += [literal(run) for run in analysis.missing_baselines]
            yield Message("warning.missing", {"runs": runs})
        if len({c.seeds for c in analysis.configurations if c.validation}) > 1:
            yield Message("warning.seeds_differ")
        if any(not scan.within for scan in analysis.scans):
            yield Message("warning.scan")
        if any(data.overlap_documents for data, _ in analysis.data):
            yield Message("warning.overlap")
        if any(data.validation_lost_bytes or data.train_lost_bytes for data, _ in analysis.data):
            yield Message("warning.lost")

    def _phase1(self) -> Iterator[Block]:
        analysis, texts = self.analysis, self.texts
        if analysis.depths or not analysis.predictions:
            if analysis.predictions:
                yield Paragraph(texts("phase1.by_dispersion"))
            yield phase1.dispersion_table(analysis, texts)
            messages = list(phase1.dispersion_findings(analysis))
            if messages:
                yield Paragraph(texts("findings_lead"))
                yield self._items(messages)
            yield from self._figure("phase1_convergence")
            yield from self._figure("phase1_loss")
        if analysis.predictions:
            shared = "shared_predictions_variants" if analysis.variants else "shared_predictions"
            about = [texts("phase1.by_prediction"), texts(f"phase1.{shared}")]
            yield Paragraph(texts("sentence_separator").join(about))
            yield phase1.prediction_table(analysis, texts)
            yield from self._figure("phase1_prediction")

    def _phase2(self) -> Iterator[Block]:
        yield tables.phase2_table(self.analysis, self.texts, self.choice)
        messages = list(phase2_findings(self.analysis, self.choice))
        if messages:
            yield Paragraph(self.texts("findings_lead"))
            yield self._items(messages)
        yield from self._figure("learning_curves")

    def _scans(self) -> Iterator[Block]:
        yield Paragraph(self.texts("scan.meaning"))
        if any(scan.method == "linear" for result in self.analysis.scans for scan in result.scans):
            yield Paragraph(self.texts("scan.linear"))
        yield tables.scan_table(self.analysis, self.texts)

    def _memory(self) -> Iterator[Block]:
        yield Paragraph(self.texts("memory.meaning"))
        yield Items(memory_sentences(self.analysis, self.texts))
        yield from self._figure("memory")

    def _standing(self) -> Iterator[Block]:
        if self.choice is None:
            yield Paragraph(self.texts.say(next(conclusions(self.analysis, None))))
            return
        yield Paragraph(self.texts.say(standing(self.analysis, self.choice)))
        if self.analysis.comparisons:
            yield self._folded(comparison_tables.comparison_table(self.analysis, self.texts))
            yield Paragraph(self.texts("comparison_note"))
            yield from self._seeds_only(self.analysis.comparisons)
            yield self._folded(comparison_tables.paired_table(self.analysis, self.texts))
            yield Paragraph(self.texts("paired_note"))

    def _folded(self, table: Table) -> Block:
        return folded(table, self.texts, ROWS_UNFOLDED) if self.analysis.variants else table

    def _seeds_only(self, comparisons: Sequence[Comparison]) -> Iterator[Block]:
        """Says where intervals do not cover the choice of the text."""
        pairs = [pair_text(c) for c in comparisons if c.effect.basis == "seeds"]
        if pairs:
            yield Callout(self.texts("seeds_only_note", pairs=pairs), "warning")

    def _beside(self) -> Iterator[Block]:
        analysis, texts = self.analysis, self.texts
        yield Paragraph(texts("beside_lead"))
        yield comparison_tables.baseline_table(analysis, texts)
        yield from (Paragraph(texts.say(message)) for message in still_improving(analysis.baselines))
        if self.choice is None or not analysis.baseline_comparisons:
            yield Paragraph(texts("beside_none"))
            return
        yield self._items(beside_messages(analysis, self.choice))
        yield comparison_tables.beside_table(analysis, texts, self.choice)
        yield Paragraph(texts("beside_note"))
        yield from self._seeds_only(analysis.baseline_comparisons)

    def _audit(self) -> Iterator[Block]:
        texts, trust = self.texts, self.analysis.trust
        if trust.audited_at is None:
            yield Paragraph(texts("audit.none"))
            return
        yield Paragraph(texts("audit.made", date=trust.audited_at[:10]))
        if trust.checks:
            yield comparison_tables.audit_table(self.analysis, texts)
        if trust.unrecomputed:
            yield Paragraph(texts("audit.unrecomputed", runs=[literal(run) for run in trust.unrecomputed]))
        if trust.unaudited:
            runs = [literal(run) for run in trust.unaudited]
            yield Callout(texts("audit.unaudited", runs=runs), "warning")

    def _depth(self) -> Iterator[Block]:
        messages = list(effect_findings(self.analysis))
        yield self._items(messages) if messages else Paragraph(self.texts("effect.none"))

    def _variants(self) -> Iterator[Block]:
        analysis, texts = self.analysis, self.texts
        if items := variant_items(analysis, texts):
            yield Paragraph(texts("variants.lead"))
            yield Items(items)
        messages = list(variant_findings(analysis))
        if not messages:
            yield Paragraph(texts("variants.none"))
            return
        against = reference(analysis)
        if against is not None:
            yield Paragraph(texts("variants.reference", reference=against))
        yield self._items(messages)
        yield comparison_tables.variants_table(analysis, texts)
        yield Paragraph(texts("variants.note"))

    def _original(self) -> Iterator[Block]:
        texts, original, ours = self.texts, load_original(), models_of_recipe_original(self.analysis)
        if self.analysis.configurations and not ours:
            yield Paragraph(texts("original.none"))
            return
        yield Callout(
            texts("original.label", title=original.title, date=original.date, device=original.device,
                  data=original.data, tokenizer=original.tokenizer),
            "warning",
        )  # fmt: skip
        if ours and ours[0].variant is not None:
            yield Paragraph(texts("original.variant", variant=ours[0].variant))
        yield tables.original_table(self.analysis, texts)
        yield Paragraph(texts("original.caveats"))
        yield Items(original.caveats[texts.language])
        yield Paragraph(texts("original.claims"))
        yield tables.claims_table(self.analysis, texts)

    def _runs(self) -> Iterator[Block]:
        analysis, texts = self.analysis, self.texts
        yield Paragraph(
            texts(
                "runs.time_variants" if analysis.variants else "runs.time",
                spent=seconds_text(analysis.seconds_spent),
                alone=seconds_text(analysis.seconds_alone),
            )
        )
        if analysis.failed:
            yield tables.failures_table(analysis.failed, texts)
        yield tables.runs_table(analysis, texts)

    def _provenance(self) -> Iterator[Block]:
        analysis, texts = self.analysis, self.texts
        yield Paragraph(texts("provenance.source"))
        yield Code(texts("provenance.command"), "sh")
        yield environment_table(analysis, texts)
        yield data_table(analysis, texts)
        if analysis.manifest is None:
            yield Paragraph(texts("provenance.no_manifest"))
            return
        settings = yaml.safe_dump(analysis.manifest.settings, sort_keys=False, allow_unicode=True, width=100)
        yield Details(texts("provenance.settings"), Code(settings.rstrip(), "yaml"))
