"""The configurations beside what people would use: which comparisons with baselines are told, and how."""

from collections.abc import Iterator

from tandem.report.choice import Choice
from tandem.report.results import Analysis, Comparison, ModelResult
from tandem.report.statistics import Verdict, perplexity
from tandem.report.wording import Message, interval_text, nats_text, number, perplexity_text


def ratio_text(difference: float | None) -> str:
    """Ratio of perplexities that a difference in nats per token makes."""
    return number(None if difference is None else perplexity(difference), 3)


def against_others(analysis: Analysis, choice: Choice) -> list[Comparison]:
    """Best and recommended configuration against every baseline that is another model."""
    names = dict.fromkeys([choice.best.name, choice.recommended.name])
    others = [b for b in analysis.baselines if b.kind != "untrained"]
    found = [analysis.against_baseline(b.name, name) for name in names for b in others]
    return [c for c in found if c is not None]


def against_untrained(analysis: Analysis) -> list[Comparison]:
    """Every configuration against itself without phase 1: what phase 1 adds."""
    found = [
        analysis.against_baseline(b.name, c.name)
        for c in analysis.configurations
        for b in analysis.baselines
        if b.kind == "untrained" and b.place == c.place
    ]
    return [c for c in found if c is not None]


def beside_messages(analysis: Analysis, choice: Choice) -> Iterator[Message]:
    """One sentence for the best configuration against each baseline, and one for each phase 1."""
    for c in against_others(analysis, choice):
        if c.b == choice.best.name:
            yield _message("beside", analysis, c)
    for c in against_untrained(analysis):
        yield _message("phase1_adds", analysis, c)


def beside_summary(analysis: Analysis, choice: Choice) -> Iterator[Message]:
    """The best configuration against the baselines that are other models, one sentence a verdict."""
    own = [c for c in against_others(analysis, choice) if c.b == choice.best.name]
    for found in Verdict:
        names = [c.a for c in own if c.verdict is found]
        if names:
            yield Message(f"beside_all.{found}", {"name": choice.best.name, "names": names})


def _message(key: str, analysis: Analysis, c: Comparison) -> Message:
    models = {model.name: model for model in (*analysis.configurations, *analysis.baselines)}
    return Message(
        f"{key}.{c.verdict}",
        {
            "name": c.b,
            "baseline": c.a,
            "perplexity": _perplexity(models[c.b]),
            "other": _perplexity(models[c.a]),
            "ratio": ratio_text(c.effect.difference),
            "difference": nats_text(c.effect.difference),
            "interval": interval_text(c.effect.interval, nats_text),
        },
    )


def _perplexity(model: ModelResult) -> str:
    return perplexity_text(model.mean_perplexity)
