"""Checks of what the model does, by perturbation: who reads which context, does anything look ahead."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.audit.subject import INEXACT, Subject
from tandem.contexts import Stream, compute_contexts
from tandem.errors import ScanError
from tandem.model import TandemForCausalLM
from tandem.records import Check

TOKENS = 256
FORWARD_TOLERANCE = 1e-3
"""Nats by which two single-precision ways to the same loss may differ."""


def behaviour_checks(subject: Subject) -> Iterator[Check]:
    """`reads`, `causality` and `forward` of one run's model."""
    yield _reads(subject)
    ids = subject.ids("validation")[:TOKENS]
    changed_from = [len(ids) // 4, len(ids) // 2, len(ids) - 1]
    texts = torch.stack([ids, *(_changed(subject, ids, position) for position in changed_from)])
    with torch.no_grad():
        logits, *changed = subject.model(input_ids=texts, use_cache=False).logits
    yield _causality(subject, logits, dict(zip(changed_from, changed, strict=True)))
    yield _forward(subject, logits)


def _reads(subject: Subject) -> Check:
    looked_at = "each token layer's output when the previous, then the current context alone is changed"
    found = layer_reads(subject.model)
    depth = subject.configuration.token_layers
    wanted = [
        {"current"} if layer == depth - 1 else {"previous"} if layer == 0 else set() for layer in range(depth)
    ]
    if len(found) != depth:
        wrong = [f"there are {len(found)} token layers instead of {depth}"]
    else:
        wrong = [
            f"token layer {layer + 1} of {depth} reads {_named(reads)} instead of {_named(wanted[layer])}"
            for layer, reads in enumerate(found)
            if reads != wanted[layer]
        ]
    said = "; ".join(wrong) or ", ".join(f"layer {n + 1}: {_named(reads)}" for n, reads in enumerate(found))
    return Check(name="reads", looked_at=looked_at, figure=said, status="fail" if wrong else "pass")


@torch.no_grad()
def layer_reads(model: TandemForCausalLM) -> list[set[str]]:
    """Which contexts each token layer reads, found by changing them; its other input is held fixed."""
    generator = torch.Generator().manual_seed(0)

    def draw(width: int) -> Tensor:
        return torch.randn(16, width, generator=generator).to(model.embedding.weight)

    previous, current, other = (draw(model.config.context_dim) for _ in range(3))
    x = draw(model.config.embed_dim)
    outputs: list[Tensor] = []
    hooks = []
    for layer in model.token_block.layers:
        hooks.append(layer.register_forward_pre_hook(lambda _, inputs: (inputs[0], x)))
        hooks.append(layer.register_forward_hook(lambda *call: outputs.append(call[-1].clone())))
    try:
        runs = {}
        for name, contexts in (
            ("as it is", (previous, current)),
            ("previous", (other, current)),
            ("current", (previous, other)),
        ):
            outputs.clear()
            model.token_block(*contexts, x)
            runs[name] = list(outputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        {name for name in ("previous", "current") if not torch.equal(runs[name][layer], output)}
        for layer, output in enumerate(runs["as it is"])
    ]


def _named(reads: set[str]) -> str:
    return " and ".join(f"the {name} context" for name in sorted(reads, reverse=True)) or "no context"


def _causality(subject: Subject, logits: Tensor, changed: dict[int, Tensor]) -> Check:
    """`logits` [T, V]: of the text; `changed`: of texts with other tokens from a position on."""
    looked_at = "logits and scanned contexts at and before a token, when all tokens after it are changed"
    worst, where = 0.0, 0
    for position, again in changed.items():
        difference = float((again[:position] - logits[:position]).abs().max()) if position else 0.0
        if difference > worst:
            worst, where = difference, position
    scanned = None if subject.quick else _scanned(subject)
    # Another burn-in may be chosen for another text, so scanned contexts agree to the tolerance only.
    limit = 2 * subject.prepared.settings.contexts.tolerance + 1e-6
    ahead = worst > 1e-5 or (scanned is not None and scanned > limit)
    figure = f"largest change of a logit {worst:.2g}"
    if scanned is not None:
        figure += f", of a scanned context {scanned:.2g}"
    if subject.quick:
        figure += "; not checked: a quick audit scans no contexts"
    if worst > 1e-5:
        figure += f": logits before token {where} depend on it or on later ones"
    return Check(name="causality", looked_at=looked_at, figure=figure, status="fail" if ahead else "pass")


def _changed(subject: Subject, ids: Tensor, start: int) -> Tensor:
    """The tokens with others from `start` on; those that start a document stay, as they reset contexts."""
    size = subject.model.config.vocab_size
    other = (ids + 1) % size
    eos = subject.model.config.bos_token_id
    other = torch.where(other == eos, (other + 1) % size, other) if eos is not None else other
    keep = (torch.arange(len(ids), device=ids.device) < start) | (ids == (-1 if eos is None else eos))
    return torch.where(keep, ids, other)


def _scanned(subject: Subject) -> float | None:
    """How much the first half's scanned contexts change with the second half of the text.

    None where the text made up for this cannot be scanned, or rounding alone changes contexts.
    """
    settings = subject.prepared.settings.contexts
    ids = subject.ids("validation")[: 4 * settings.segment_length]
    half = len(ids) // 2
    if not half or not subject.exact:
        return None
    computed = subject.contexts.of(subject)
    if "scanned" not in computed:
        try:
            one, two = (
                compute_contexts(subject.model, Stream.of(subject.model, text.cpu()), settings)[0].whole()
                for text in (ids, _changed(subject, ids, half))
            )
        except ScanError:
            return None
        computed["scanned"], computed["scanned again"] = one, two
    one, two = computed["scanned"], computed["scanned again"]
    return float((one[:half] - two[:half]).abs().max())


def _forward(subject: Subject, logits: Tensor) -> Check:
    looked_at = (
        f"losses of the first {TOKENS} validation tokens by the model's own forward and by the definition"
    )
    if not subject.exact:
        return Check(name="forward", looked_at=looked_at, figure=INEXACT, status="skip")
    targets = subject.ids("validation")[1 : TOKENS + 1]
    own = F.cross_entropy(logits[: len(targets)].float(), targets, reduction="none").cpu().numpy()
    defined = subject.validation_losses[0][: len(own)]
    worst = float(abs(own - defined).max())
    status = "fail" if not worst <= FORWARD_TOLERANCE else "pass"
    figure = f"largest difference {worst:.2g} nats (limit {FORWARD_TOLERANCE:g})"
    return Check(name="forward", looked_at=looked_at, figure=figure, status=status)
