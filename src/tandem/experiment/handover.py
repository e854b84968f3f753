"""What phase 1 leaves to phase 2: the weights of a ContextBlock, and token layers to start from."""

from collections.abc import Mapping, Sequence

import torch

from tandem.experiment.prepared import Prepared, new_model
from tandem.fingerprint import fingerprint
from tandem.model import TandemForCausalLM, TokenBlock
from tandem.records import Phase1Record, PredictionRecord, nearest_head
from tandem.settings import Configuration, Recipe
from tandem.training.prediction import head_name


def phase1_fingerprint(prepared: Prepared, context_layers: int, seed: int) -> str:
    """Of everything that phase 1 depends on: the context depth, the seed, and what they are trained on."""
    settings = prepared.settings
    own = settings.phase1 if settings.recipe == "original" else settings.prediction
    return fingerprint(
        "phase1",
        settings.recipe,
        settings.model.model_dump(mode="json"),
        own.model_dump(mode="json"),
        prepared.corpus.fingerprint,
        prepared.table_fingerprint,
        prepared.execution.bfloat16,
        context_layers,
        seed,
    )


SavedPhase1 = tuple[dict[str, torch.Tensor], Phase1Record | PredictionRecord]
PHASE1_PARTS: dict[Recipe, tuple[str, ...]] = {
    "original": ("context_block",),
    "predictive": ("context_block", "embedding", "embed_norm", "lm_head"),
}
"""What phase 1 leaves to phase 2, by the names of the model's children."""


def phase1_state(model: TandemForCausalLM, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The weights that phase 1 leaves to phase 2; those of the output head are the embedding's."""
    kept = tuple(f"{part}." for part in PHASE1_PARTS[recipe])
    weights = model.state_dict()
    return {name: weights[name] for name in weights if name.startswith(kept) and name != "lm_head.weight"}


def take_phase1(model: TandemForCausalLM, state: dict[str, torch.Tensor]) -> None:
    """Put what phase 1 left into a new model; the weights of its heads, beside them, are not the model's."""
    own = {name: state[name] for name in state if not name.startswith("head")}
    unknown = model.load_state_dict(own, strict=False).unexpected_keys
    assert not unknown, f"phase 1 left {unknown}, which the model does not have"


def new_heads(prepared: Prepared, context_layers: int, seed: int) -> list[TokenBlock]:
    """The TokenBlocks through which phase 1 predicts, drawn from the seed; none of recipe `original`."""
    settings = prepared.settings
    if settings.recipe == "original":
        return []
    depths = sorted(set(settings.prediction.head_layers))
    return [new_model(prepared, Configuration(context_layers, depth), seed).token_block for depth in depths]


def head_state(head: TokenBlock) -> dict[str, torch.Tensor]:
    """Its weights, named as in records and files."""
    return {f"{head_name(head)}.{name}": tensor for name, tensor in head.state_dict().items()}


def load_heads(heads: Sequence[TokenBlock], state: Mapping[str, torch.Tensor]) -> None:
    """Put kept weights into new heads; raises RuntimeError where one's are not there."""
    for head in heads:
        prefix = f"{head_name(head)}."
        own = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        head.load_state_dict(own)


def head_for(heads: Sequence[TokenBlock], token_layers: int) -> TokenBlock:
    """The head that a TokenBlock of this depth starts from."""
    by_depth = {len(head.layers): head for head in heads}
    return by_depth[nearest_head(by_depth, token_layers)]
