"""Which configuration to use: the smallest among those not shown to be worse than the best."""

from dataclasses import dataclass
from typing import Literal

from tandem.report.results import Analysis, ModelResult
from tandem.report.statistics import Verdict
from tandem.settings import preset_names
from tandem.shown import command


@dataclass(frozen=True)
class Choice:
    """The recommendation that follows from the verdicts.

    `reason` names the rule that decided: no rival; lowest perplexity and smallest; lowest perplexity with all
    smaller ones shown worse; or smaller than the best and not shown worse than it.
    """

    best: ModelResult
    """Lowest mean validation NLL; by itself no claim."""
    recommended: ModelResult
    reason: Literal["only", "best_and_smallest", "smaller_shown_worse", "not_shown_worse"]
    provisional: bool
    """Whether some comparison with the best had too few seeds to show anything."""
    alternative: ModelResult | None
    alternative_reason: Literal["lowest_perplexity", "next"] | None
    avoid: tuple[tuple[ModelResult, tuple[str, ...]], ...]
    """Configurations shown worse, each with what they are shown worse than (the best, the recommended)."""


def choose(analysis: Analysis) -> Choice | None:
    """Best, recommended, alternative and avoided configurations; none where nothing can be ranked.

    Seeds that differ between configurations do not disturb the verdicts, which rest on common seeds.
    """
    ranked = sorted((c for c in analysis.configurations if c.rankable), key=_mean_nll)
    if not ranked or not analysis.comparable:
        return None
    best = ranked[0]
    acceptable = [c for c in ranked if c is best or not _shown_worse(analysis, c, than=best)]
    recommended = min(acceptable, key=lambda c: (_total(c), _mean_nll(c)))
    against = {best.name: best, recommended.name: recommended}
    avoid = tuple(
        (c, than)
        for c in ranked
        if (than := tuple(name for name, rival in against.items() if _shown_worse(analysis, c, than=rival)))
    )
    avoided = [c for c, _ in avoid]
    rest = [c for c in acceptable if c is not recommended and c not in avoided]
    alternative = rest[0] if rest else None
    smaller = [c for c in ranked if _total(c) < _total(recommended)]
    rivals = [analysis.compare(best.name, c.name) for c in ranked if c is not best]
    return Choice(
        best=best,
        recommended=recommended,
        reason=(
            "only"
            if len(ranked) == 1
            else "not_shown_worse"
            if recommended is not best
            else "smaller_shown_worse"
            if smaller
            else "best_and_smallest"
        ),
        provisional=any(r is None or r.verdict is Verdict.TOO_FEW_SEEDS for r in rivals),
        alternative=alternative,
        alternative_reason=None
        if alternative is None
        else "lowest_perplexity"
        if alternative is best
        else "next",
        avoid=avoid,
    )


def train_command(configuration: ModelResult, experiment: str) -> str:
    """The command that trains this configuration alone.

    A variant is one of the experiment's settings, so the command names them: the preset of that name, or
    else the file that an experiment takes its name from.
    """
    c = configuration
    depths = ("--context-layers", c.context_layers, "--token-layers", c.token_layers)
    if c.variant is None:
        return command("tandem", "train", *depths)
    settings = experiment if experiment in preset_names() else f"{experiment}.yaml"
    return command("tandem", "train", settings, "--variant", c.variant, *depths)


def selecting_settings(configuration: ModelResult) -> list[str]:
    """The settings that select it; `num_layers` sets both depths where they are equal."""
    c = configuration
    lines = [f"context_layers = {c.context_layers}", f"token_layers = {c.token_layers}"]
    return [*lines, f"num_layers = {c.context_layers}"] if c.context_layers == c.token_layers else lines


def _shown_worse(analysis: Analysis, c: ModelResult, than: ModelResult) -> bool:
    comparison = analysis.compare(than.name, c.name)
    return comparison is not None and comparison.verdict is Verdict.WORSE


def _mean_nll(c: ModelResult) -> float:
    return float("inf") if c.nll is None else c.nll.mean


def _total(c: ModelResult) -> float:
    return float("inf") if c.parameters is None else c.parameters.total
