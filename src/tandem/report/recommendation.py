"""Which configuration to use, which to avoid, and how to train it: the sections that say so."""

from collections.abc import Iterable, Iterator, Sequence

from tandem.report.blocks import Block, Code, Items, Paragraph, Section
from tandem.report.choice import Choice, selecting_settings, train_command
from tandem.report.findings import alternative_messages, avoid_messages, caveats, recommendation_message
from tandem.report.results import Analysis, ModelResult
from tandem.report.wording import Message, Texts, count_short, count_text, percent, perplexity_text


def recommendation_sections(analysis: Analysis, choice: Choice | None, texts: Texts) -> Iterator[Section]:
    """The recommended configuration, the alternative, and what to avoid."""
    if choice is None:
        yield Section("recommended", texts("recommended.none"), (), 3)
        return
    reason = [recommendation_message(choice), *caveats(analysis, choice)]
    yield _choice_section("recommended", choice.recommended, reason, texts)
    alternatives = list(alternative_messages(analysis, choice))
    if choice.alternative is not None:
        yield _choice_section("alternative", choice.alternative, alternatives, texts)
    else:
        none = _items(alternatives, texts)
        yield Section("no_alternative", texts("section.no_alternative"), (none,), 3)
    avoid = list(avoid_messages(choice)) or [Message("avoid.none")]
    yield Section("avoid", texts("section.avoid"), (_items(avoid, texts),), 3)


def change_blocks(analysis: Analysis, choice: Choice, texts: Texts) -> Iterator[Block]:
    """How to select the recommended configuration, and how to train it alone."""
    recommended = choice.recommended
    yield Paragraph(texts("change.settings", name=recommended.name))
    yield Code(_settings(recommended, texts), "python")
    yield Paragraph(texts("change.command" if recommended.variant is None else "change.command_variant"))
    yield Code(train_command(recommended, analysis.experiment), "sh")


def _choice_section(name: str, c: ModelResult, reasons: Sequence[Message], texts: Texts) -> Section:
    figures = [
        texts("choice.perplexity", value=perplexity_text(c.mean_perplexity)),
        texts("choice.accuracy", value=percent(c.accuracy.mean if c.accuracy else None)),
        texts("choice.parameters", value=count_short(c.parameters.total if c.parameters else None)),
        texts("choice.epochs", value=count_text(c.prediction_epochs.mean))
        if c.prediction_epochs
        else texts("choice.iterations", value=count_text(c.iterations.mean if c.iterations else None)),
    ]
    title = texts(f"section.{name}", name=c.name, context=str(c.context_layers), token=str(c.token_layers))
    items = Items([*(texts.say(reason) for reason in reasons), *figures])
    return Section(name, title, (Code(_settings(c, texts), "python"), items), 3)


def _settings(c: ModelResult, texts: Texts) -> str:
    context, token, *both = selecting_settings(c)
    return "\n".join([context, token, *([texts("code.or"), *both] if both else [])])


def _items(messages: Iterable[Message], texts: Texts) -> Items:
    return Items([texts.say(message) for message in messages])
