"""What a run says of itself, replayed from its own history and held against the settings that it names.

Nothing here uses training code: who stops when, which epoch is best, and how large a network is, is worked
out again from the definitions in the settings.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tandem.audit.plain import splits_tokens
from tandem.audit.sizes import NETWORKS, tandem_sizes
from tandem.fingerprint import fingerprint
from tandem.records import Check, RunRecord, TrainingRecord
from tandem.settings import Settings

ROUNDING = 1e-9
"""Relative difference of two sums of the same numbers."""
SAME_NLL = 1e-3
"""Nats by which a head may score differently in phase 1 and at the start of phase 2."""
RISE, USUAL_LR = 0.3, 0.1
"""Nats by which training NLL may rise over all epochs, and the largest usual learning rate."""
LONGEST_TOKEN = 256
"""Bytes of a long token: those of the first token are not scored, unless it only marks a document's start."""


def history_check(written: Mapping[str, Any], record: RunRecord, records: Sequence[RunRecord]) -> Check:
    """`history` of one finished run, with the settings as they were written down and all finished records."""
    reference, allowed = baseline_limits(written, records)
    own = variant_settings(written, record.variant) if record.is_tandem else reference
    wrong, doubts = [*_times(record), *_scores(record, own)], [*_doubts(record, own)]
    if record.is_tandem:
        wrong += [*_sizes(record, own), *_contexts(record, own), *_phase1(record, own), *_phase2(record, own)]
    elif _other_settings(record, own, allowed):
        doubts += ["its settings are not those that are written down", *_baseline(record, own, allowed)]
    else:
        wrong += _baseline(record, own, allowed)
    epochs = len(record.trained.history) if record.trained else 0
    return Check(
        name="history",
        looked_at="the run's own history, replayed plainly: epochs, stop, best epoch, figures, times, sizes",
        figure="; ".join([*wrong, *doubts]) or f"{epochs} epochs as the settings say",
        status="fail" if wrong else "warn" if doubts else "pass",
    )


# Settings


def variant_settings(written: Mapping[str, Any], variant: str | None) -> Settings:
    """Settings as they were written down, with what a variant changes; a model folder has no variants."""
    values = {key: value for key, value in written.items() if key != "variants"}
    for key, change in ((written.get("variants") or {}).get(variant) or {}).items():
        inner = isinstance(change, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = {**values[key], **change} if inner else change
    return Settings(**values)


def baseline_limits(written: Mapping[str, Any], records: Iterable[RunRecord]) -> tuple[Settings, int | None]:
    """Settings whose sizes the baselines are given, and the parameters they may have; None: not known.

    They are those of the variant whose smallest configuration is the largest.
    """
    sizes: dict[str | None, dict[tuple[int | None, int | None], int]] = {}
    for r in records:
        if r.kind == "tandem" and r.parameters is not None:
            sizes.setdefault(r.variant, {})[r.context_layers, r.token_layers] = r.parameters.total
    grid = {(context, token) for context, token in Settings(**written).configurations}
    names: list[str | None] = list(written.get("variants") or ()) or [None]
    if not all(grid <= sizes.get(name, {}).keys() for name in names):
        return variant_settings(written, names[0]), None
    smallest = {name: min(sizes[name][depths] for depths in grid) for name in names}
    largest = max(names, key=lambda name: smallest[name])
    settings = variant_settings(written, largest)
    return settings, settings.baselines.max_parameters or smallest[largest]


def _other_settings(record: RunRecord, settings: Settings, allowed: int | None) -> bool:
    """Whether a baseline names other settings of its own than those that are written down."""
    own = _network_section(record, settings)
    if own is None or allowed is None:
        return False
    shared = settings.baselines.model_dump(mode="json")
    budget = {name: shared[name] for name in ("seconds", "learning_rates") if shared[name]}
    now = {"max_parameters": allowed, **own.model_dump(mode="json"), **budget}
    return record.baseline_fingerprint != fingerprint("baseline", record.kind, now)


def _network_section(record: RunRecord, settings: Settings) -> Any:
    """Settings of a network; None of other baselines, which train nothing or bring their own."""
    return getattr(settings.baselines, record.kind.replace("-", "_")) if record.kind in NETWORKS else None


# All runs


def _times(record: RunRecord) -> Iterator[str]:
    """Seconds as the sum of their parts."""
    alone, spent, contexts = record.seconds_alone_s, record.seconds_spent_s, record.contexts
    if contexts is not None and record.phase2 is not None:
        scans = contexts.train.seconds_s + contexts.validation.seconds_s
        yield from _unequal("seconds of its contexts", contexts.seconds_s, scans)
        parts = [
            record.phase1.seconds_s if record.phase1 else 0.0,
            contexts.seconds_s,
            record.phase2.seconds_s,
        ]
        yield from _unequal("seconds alone", alone, math.fsum(parts))
        yield from _unequal("seconds spent", spent, alone if record.phase1_computed_here else parts[-1])
        if min(parts) < 0:
            yield f"phase 1, contexts and phase 2 took {parts} s"
    else:
        search = record.training.search if record.training else ()
        yield from _unequal("seconds spent", spent, math.fsum([alone, *(t.seconds_s for t in search)]))
        if record.training and record.training.seconds_s > alone:
            yield f"its training took {record.training.seconds_s:.2f} s, and the whole run {alone:.2f} s"


def _scores(record: RunRecord, settings: Settings) -> Iterator[str]:
    """Validation figures against each other."""
    said, data = record.validation, record.data
    assert said is not None
    scored = data.validation_tokens - 1
    yield from _differing("validation scored tokens", said.tokens, scored, "there are")
    yield from _loss("validation NLL", said.nll_nats)
    yield from _exponential("validation PPL", said.perplexity, said.nll_nats)
    yield from _share_of_tokens("validation accuracy", said.accuracy, said.tokens)
    # Bits per byte lie between those over all bytes and those over all but a first token's.
    bits = said.nll_nats * said.tokens / math.log(2) + 8 * data.validation_lost_bytes
    marked = settings.tokenizer.source == "bpe" and settings.data.separators["validation"] == "eos"
    least = max(data.validation_bytes - (0 if marked else LONGEST_TOKEN), 1)
    low, high = bits / max(data.validation_bytes, 1) * (1 - ROUNDING), bits / least * (1 + ROUNDING)
    if math.isfinite(bits) and not low <= said.bits_per_byte <= high:
        yield f"bits per byte are {said.bits_per_byte:.4f}, and its NLL gives {low:.4f}"
    if said.documents is not None:
        tokens, nll = said.documents.unpack()
        mean = float(nll.sum()) / max(int(tokens.sum()), 1)
        if not math.isclose(mean, said.nll_nats, rel_tol=1e-5, abs_tol=1e-6):
            yield f"its documents have the mean NLL {mean:.6f}, and it says {said.nll_nats:.6f}"
        found = len(tokens), int(tokens.sum())
        yield from _differing(
            "documents and their scored tokens", found, (data.validation_documents, scored), "there are"
        )


def _doubts(record: RunRecord, settings: Settings) -> Iterator[str]:
    """What is odd, and no error by itself."""
    section = _network_section(record, settings) or settings.phase2
    epochs = [e for e in record.trained.history if e.epoch > 0] if record.trained else []
    if len(epochs) > 1 and section.lr <= USUAL_LR:
        first, last = epochs[0].train_nll_nats, epochs[-1].train_nll_nats
        if last > first + RISE:
            yield f"training NLL rose from {first:.3f} in the first epoch to {last:.3f} in the last"


# Phases


def _sizes(record: RunRecord, settings: Settings) -> Iterator[str]:
    """Parameters by part."""
    assert record.parameters is not None
    for part, size in tandem_sizes(record, settings).items():
        yield from _differing(f"parameters, {part}:", getattr(record.parameters, part), size)


def _contexts(record: RunRecord, settings: Settings) -> Iterator[str]:
    said, own, data = record.contexts, settings.contexts, record.data
    assert said is not None
    for split, scan, tokens, rank in (
        ("training", said.train, data.train_tokens, said.effective_rank_train),
        ("validation", said.validation, data.validation_tokens, said.effective_rank_validation),
    ):
        yield from _differing(f"{split} contexts are of tokens", scan.tokens, tokens, "there are")
        yield from _differing(f"{split} contexts had the tolerance", scan.tolerance, own.tolerance)
        if own.method == "loop":
            yield from _differing(f"{split} contexts came by", scan.method, "loop")
        if not max(scan.loop_error, scan.join_error) <= scan.tolerance:
            yield f"{split} contexts are beyond their tolerance of {scan.tolerance:g}"
        if not 0 <= rank <= 1 + ROUNDING:
            yield f"the effective rank of {split} contexts is {rank}"
    distances = [point.distance for point in said.memory]
    if distances != sorted(set(distances)) or distances[:1] not in ([], [0]):
        yield f"its memory is of the distances {distances}, which do not rise from 0"
    if not all(0 <= point.change < math.inf for point in said.memory):
        yield "its memory has a change that is negative or not finite"


def _phase1(record: RunRecord, settings: Settings) -> Iterator[str]:
    """Phase 1 of the recipes that Tandem brings; of a control there is none."""
    said: Any = record.phase1
    if said is None:
        if record.kind == "tandem":
            yield "it has no phase 1"
        return
    if (of_recipe := PHASE1.get(record.recipe or "")) is None:
        return
    dispersion = hasattr(said, "iterations")
    name = "iteration" if dispersion else "epoch"
    history = said.history
    yield from _rising(f"phase 1, {name}", [(getattr(e, name), e.seconds_s) for e in history], said.seconds_s)
    values = [(getattr(e, name), e.loss if dispersion else e.train_nll_nats, e.grad_norm) for e in history]
    yield from _repeated(f"{name}s", "loss in phase 1", [value[:2] for value in values])
    for number, loss, norm in values:
        if not (math.isfinite(loss) and 0 <= norm < math.inf) or not (dispersion or loss >= 0):
            yield f"phase 1 has the loss {loss} and gradient norm {norm} in {name} {number}"
    numbers = [value[0] for value in values]
    first = 2 if dispersion else 1
    yield from _numbered(f"phase 1, {name}s", numbers, first)
    last = numbers[-1] if numbers else 0
    said_last = said.iterations if dispersion else said.epochs
    yield from _differing(f"phase 1 says {name}s:", said_last, last, "and its history ends with")
    yield from of_recipe(record, settings)


def _dispersion(record: RunRecord, settings: Settings) -> Iterator[str]:
    """The stop, replayed: the first iteration with enough converged positions, else the last one allowed."""
    said: Any = record.phase1
    own, rates = settings.phase1, [(e.iteration, e.convergence_rate) for e in said.history]
    tokens = record.data.train_tokens
    swept = tokens if own.tokens_per_step is None else min(own.tokens_per_step, tokens)
    yield from _differing("phase 1 swept tokens:", said.tokens, swept)
    for iteration, rate in rates:
        yield from _share_of_tokens(f"the convergence of iteration {iteration}", rate, said.tokens)
    end = next((i for i, rate in rates if rate >= own.convergence_stop), None)
    last, rate = rates[-1] if rates else (0, 0.0)
    if end is None and last != own.max_iterations:
        yield (
            f"phase 1 stopped after {last} iterations, but only {rate:.1%} had converged; the settings say "
            f"{own.convergence_stop:.1%} or {own.max_iterations} iterations"
        )
    elif end is not None and end != last:
        yield f"phase 1 ran on to iteration {last}, but {own.convergence_stop:.1%} had converged at {end}"
    elif last > own.max_iterations:
        yield f"phase 1 made {last} iterations, the settings say {own.max_iterations}"
    stopped = "max_iterations" if end is None else "converged"
    yield from _differing("phase 1 says that it ended by", said.stopped, stopped, "and its history by")
    yield from _differing(
        "phase 1 says that it converged to", said.convergence_rate, rate, "and its history ends with"
    )


def _prediction(record: RunRecord, settings: Settings) -> Iterator[str]:
    said: Any = record.phase1
    own, tokens = settings.prediction, record.data.train_tokens
    yield from _differing("epochs of phase 1:", said.epochs, own.max_epochs)
    yield from _differing("phase 1 read tokens:", said.tokens, tokens, "there are")
    count = tokens - 1
    streams = min(own.streams, count)
    # Streams of one length; where they do not divide the text, its first positions are read twice.
    twice = -count % streams
    for e in said.history:
        if e.text_tokens == tokens:
            yield from _positions(f"epoch {e.epoch} of phase 1", e, count, twice)
            continue
        # Of a text with split tokens as many places are read, none of them twice.
        yield from _differing(f"epoch {e.epoch} of phase 1 predicted tokens:", e.positions, count + twice)
        least = e.positions * (e.positions - 1) // 2
        most = e.positions * (e.text_tokens - 1 - e.positions) + least
        if not splits_tokens(own, tokens, e.epoch) or e.text_tokens < tokens:
            yield f"epoch {e.epoch} of phase 1 read a text of {e.text_tokens} tokens, there are {tokens}"
        elif not least <= e.position_sum <= max(most, least + twice * e.text_tokens):
            yield f"epoch {e.epoch} of phase 1 read some positions more often than others"
    found = [head.token_layers for head in said.heads]
    yield from _differing("phase 1 has heads of layers", found, sorted(set(own.head_layers)))
    validation, parameters = record.validation, record.parameters
    assert validation is not None
    assert parameters is not None
    for head in said.heads:
        name = f"the head of {head.token_layers} layers"
        yield from _loss(f"the NLL of {name}", head.nll_nats)
        yield from _share_of_tokens(f"the accuracy of {name}", head.accuracy, validation.tokens)
        if head.token_layers != record.token_layers:
            continue
        yield from _differing(f"parameters of {name}:", head.parameters, parameters.token_block, "it is of")
        start = record.phase2.history[0] if record.phase2 and record.phase2.history else None
        # Phase 2 starts from the head of its own depth, if it starts from one.
        if start and start.epoch == 0 and not abs(start.validation_nll_nats - head.nll_nats) <= SAME_NLL:
            reached = start.validation_nll_nats
            yield f"{name} has the NLL {head.nll_nats:.4f}, its copy in phase 2 {reached:.4f}"


PHASE1 = {"original": _dispersion, "predictive": _prediction}
"""What is particular to a recipe."""


def _phase2(record: RunRecord, settings: Settings) -> Iterator[str]:
    said, own = record.phase2, settings.phase2
    assert said is not None
    # The weights at the start count as an epoch where they are those of a head, which a control lacks.
    from_head = own.start == "phase1" and record.kind == "tandem"
    yield from _training(record, said, int(not from_head), own.max_epochs, own.patience)
    for e in said.history:
        if e.epoch > 0:
            yield from _positions(f"epoch {e.epoch}", e, record.data.train_tokens - 1, 0)


def _positions(name: str, epoch: Any, count: int, twice: int) -> Iterator[str]:
    """Every position was read once, and so many of them once more; their sum tells."""
    yield from _differing(f"{name} predicted tokens:", epoch.positions, count + twice)
    more = (epoch.position_sum or 0) - count * (count - 1) // 2
    if not 0 <= more <= twice * (count - 1):
        yield f"{name} read some of {count} positions more often than others"


# Training by epochs


def _training(
    record: RunRecord, said: TrainingRecord, first: int, max_epochs: int | None, patience: int | None
) -> Iterator[str]:
    """Epochs from `first` on, the stop by `patience` (none: never) and `max_epochs` (none: not known)."""
    history, validation = said.history, record.validation
    assert validation is not None
    if not history:
        yield "its history is empty"
        return
    yield from _numbered("its epochs", [e.epoch for e in history], first)
    yield from _rising("epoch", [(e.epoch, e.seconds_s) for e in history], said.seconds_s)
    for name, losses in (
        ("training NLL", [(e.epoch, e.train_nll_nats) for e in history]),
        ("validation NLL", [(e.epoch, e.validation_nll_nats) for e in history]),
    ):
        yield from _repeated("epochs", name, losses)
        for epoch, loss in losses:
            yield from _loss(f"the {name} of epoch {epoch}", loss)
    for e in history:
        name = f"the validation accuracy of epoch {e.epoch}"
        yield from _share_of_tokens(name, e.validation_accuracy, validation.tokens)
    yield from _differing("it says epochs:", said.epochs, history[-1].epoch, "and its history ends with")
    if max_epochs is not None:
        yield from _stop(said, max_epochs, patience)
    best = min(history, key=lambda e: e.validation_nll_nats)
    for name, theirs, ours in (
        ("best epoch", said.best_epoch, best.epoch),
        ("training NLL", said.train_nll_nats, best.train_nll_nats),
        ("validation NLL", validation.nll_nats, best.validation_nll_nats),
        ("validation accuracy", validation.accuracy, best.validation_accuracy),
    ):
        yield from _differing(f"its {name} is", theirs, ours, "in the best epoch of its history")
    yield from _exponential("training PPL", said.train_perplexity, said.train_nll_nats)


def _budget(said: TrainingRecord, settings: Settings) -> Iterator[str]:
    """The seconds that a network was given, and the learning rates that it was tried with."""
    limit_s, rates = settings.baselines.seconds, list(settings.baselines.learning_rates)
    yield from _differing("learning rates were tried:", [trial.lr for trial in said.search], rates)
    if limit_s is None:
        return
    yield from _differing("it says that it ended by", said.stopped, "seconds")
    if said.seconds_s < limit_s:
        yield f"its training took {said.seconds_s:.2f} s, the settings give it {limit_s:g}"
    if len(said.history) > 1 and (before := said.history[-2].seconds_s) >= limit_s:
        yield f"it went on after {before:.2f} s, the settings give it {limit_s:g}"


def _stop(said: TrainingRecord, max_epochs: int, patience: int | None) -> Iterator[str]:
    """Why and when training was to end, replayed epoch by epoch."""
    last, lowest, waited, end = said.history[-1].epoch, math.inf, 0, None
    for e in said.history:
        waited = 0 if e.validation_nll_nats < lowest else waited + 1
        lowest = min(lowest, e.validation_nll_nats)
        if end is None and patience is not None and waited >= patience:
            end = e.epoch
    if end is not None and end < last:
        yield f"it ran on to epoch {last}, but patience {patience} was reached at epoch {end}"
    elif last > max_epochs or (end is None and last < max_epochs):
        if said.stopped == "patience" and last < max_epochs:
            yield f"it stopped after {last} epochs by patience, but {waited} of {patience} had passed"
        yield f"{last} epochs were made, the settings say {max_epochs}"
    reason = "max_epochs" if end is None else "patience"
    yield from _differing("it says that it ended by", said.stopped, reason, "and its history by")


# Baselines


def _baseline(record: RunRecord, settings: Settings, allowed: int | None) -> Iterator[str]:
    """Epochs and size of the networks; what an n-gram model counts as parameters."""
    own, said, parameters = _network_section(record, settings), record.training, record.parameters
    assert parameters is not None
    yield from _differing("parameters that it trains:", parameters.trained_phase2, parameters.total, "of")
    parts = parameters.embedding + parameters.other
    yield from _differing("its parameters are", parameters.total, parts, "and their parts")
    if said is not None:
        limit_s = settings.baselines.seconds
        yield from _training(record, said, 1, own.max_epochs if own and limit_s is None else None, None)
        yield from _budget(said, settings) if own else ()
    elif own is not None:
        yield "it has no record of its training"
    if own is None:
        return
    most, sizes = allowed or parameters.total, NETWORKS[record.kind]
    fitting = [found for found in sizes(settings, record.data.vocab_size, most) if found[0] <= most]
    if parameters.total > most:
        yield f"it has {parameters.total} parameters and may have {most}"
    found = parameters.total, parameters.embedding
    widest = fitting[-1] if fitting else (0, 0)
    yield from _differing("its parameters in all and in its embedding:", found, widest)


# Single figures


def _differing(what: str, said: object, right: object, where: str = "the settings say") -> Iterator[str]:
    if said != right:
        yield f"{what} {said}, {where} {right}"


def _numbered(what: str, numbers: Sequence[int], first: int) -> Iterator[str]:
    wanted = list(range(first, first + len(numbers)))
    if list(numbers) != wanted or not numbers:
        shown = ", ".join(map(str, numbers[:6])) + (", …" if len(numbers) > 6 else "")
        yield f"{what} are numbered {shown or 'not at all'}, and should count from {first}"


def _rising(what: str, seconds: Sequence[tuple[int, float]], total: float) -> Iterator[str]:
    """Seconds since the start, which rise and stay below the total."""
    for (_, before), (number, after) in pairwise([(0, 0.0), *seconds]):
        if not before <= after:
            yield f"{what} {number} ended after {after:.3f} s, before the one in front of it"
    if seconds and not seconds[-1][1] <= total:
        yield f"{what} {seconds[-1][0]} ended after {seconds[-1][1]:.3f} s, of {total:.3f} s in all"


def _repeated(what: str, name: str, losses: Sequence[tuple[int, float]]) -> Iterator[str]:
    """The same loss to the last digit twice: an epoch was repeated, or trained nothing."""
    seen: dict[float, int] = {}
    for number, loss in losses:
        if loss != 0 and math.isfinite(loss) and loss in seen:
            yield f"{what} {seen[loss]} and {number} have the same {name} to the last digit"
        seen.setdefault(loss, number)


def _loss(name: str, loss: float) -> Iterator[str]:
    if not 0 <= loss < math.inf:
        yield f"{name} is {loss}"


def _exponential(name: str, said: float, nll: float) -> Iterator[str]:
    right = math.exp(nll) if nll < 700 else math.inf
    if said != right and not math.isclose(said, right, rel_tol=ROUNDING):
        yield f"{name} {said:.4f} is not exp of its NLL, {right:.4f}"


def _share_of_tokens(name: str, share: float, tokens: int) -> Iterator[str]:
    """A share of so many tokens is a whole number of them."""
    count = share * tokens
    if not 0 <= share <= 1:
        yield f"{name} is {share:.4f}, and a share is from 0 to 1"
    elif abs(count - round(count)) > 1e-6 * max(tokens, 1) ** 0.5:
        yield f"{name} is {share:.6f}, which is no whole number of {tokens} tokens"


def _unequal(name: str, said: float, parts: float) -> Iterator[str]:
    if not math.isclose(said, parts, rel_tol=ROUNDING, abs_tol=1e-9):
        yield f"{name} are {said:.3f}, and their parts give {parts:.3f}"
