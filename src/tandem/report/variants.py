"""Variants beside each other: configurations of equal depths that were trained in different ways."""

from collections.abc import Iterator
from itertools import combinations

from tandem.report.planned import changes
from tandem.report.results import Analysis, Comparison
from tandem.report.statistics import Verdict
from tandem.report.wording import Message, Texts, Value, change_text, code, interval_text, nats_text


def reference(analysis: Analysis) -> str | None:
    """The variant that the others are measured against: the first of the manifest that has results."""
    return next(iter(_with_results(analysis)), None) if analysis.manifest else None


def variant_pairs(analysis: Analysis) -> list[Comparison]:
    """Configurations of equal depths in the reference and in another variant; in every two without one."""
    names = _with_results(analysis)
    measured_against = reference(analysis)
    pairs = [pair for pair in combinations(names, 2) if measured_against in (None, pair[0])]
    by_place = {c.place: c.name for c in analysis.configurations}
    depths = dict.fromkeys((c.context_layers, c.token_layers) for c in analysis.configurations)
    found = [
        analysis.compare(by_place[a, *depth], by_place[b, *depth])
        for a, b in pairs
        for depth in depths
        if (a, *depth) in by_place and (b, *depth) in by_place
    ]
    return [comparison for comparison in found if comparison is not None]


def variant_findings(analysis: Analysis) -> Iterator[Message]:
    """The pairs by verdict: with the change of perplexity where one is shown, else with the interval."""
    pairs = variant_pairs(analysis)
    for found in Verdict:
        named = [_pair(c) for c in pairs if c.verdict is found]
        if named:
            yield Message(f"variants.{found}", {"pairs": named})


def variant_items(analysis: Analysis, texts: Texts) -> list[str]:
    """The settings that each variant changes; none where no manifest tells."""
    if analysis.manifest is None:
        return []
    changed = {variant: changes(analysis.manifest, variant) for variant in analysis.variants}
    return [
        texts(
            "variants.changes" if own else "variants.unchanged",
            variant=variant,
            changes=[code(change) for change in own],
        )
        for variant, own in changed.items()
    ]


def overview_of_variants(analysis: Analysis, texts: Texts) -> dict[str, Value]:
    """The variants, with their recipes where these differ; else a recipe that is not the original's."""
    recipes = {c.variant: c.recipe for c in analysis.configurations}
    if len(set(recipes.values())) > 1:
        named = [
            texts("variants.with_recipe", variant=variant, recipe=code(recipes.get(variant)))
            for variant in analysis.variants
        ]
        return {"variants": named}
    facts: dict[str, Value] = {"variants": analysis.variants} if analysis.variants else {}
    return facts | ({"recipe": code("predictive")} if "predictive" in recipes.values() else {})


def overview_of_sizes(analysis: Analysis, texts: Texts) -> dict[str, Value]:
    """Sizes that all configurations share, or each variant's own."""
    sizes: dict[str, Value] = {}
    for name in ("embed_dim", "context_dim"):
        found = {r.variant: getattr(r, name) for r in reversed(analysis.records)}
        own = {variant: str(found[variant]) for variant in analysis.variants if variant in found}
        every = [str(size) for size in found.values() if size is not None]
        if len(set(own.values())) > 1:
            sizes[name] = [texts("of_variant", variant=v, said=size) for v, size in own.items()]
        elif every:
            sizes[name] = every[-1]
    return sizes


def _with_results(analysis: Analysis) -> list[str]:
    finished = {c.variant for c in analysis.configurations if c.validation}
    return [variant for variant in analysis.variants if variant in finished]


def _pair(c: Comparison) -> str:
    shown = c.verdict in (Verdict.BETTER, Verdict.WORSE)
    size = f"({change_text(c.effect.difference)})" if shown else interval_text(c.effect.interval, nats_text)
    return f"{c.a} → {c.b} {size}" if shown or c.effect.interval else f"{c.a} → {c.b}"
