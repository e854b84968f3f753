"""What the tables of speed are measured on: python-docs, or random tokens that are as uneven as words."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measuring import made_small

from tandem.experiment.prepared import TrainingInputs, prepare
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.settings import ContextSettings, Settings, load_settings
from tandem.training.initialization import generator_for, initialize_block

CONTEXTS = ContextSettings(**made_small({}).get("contexts", {}))
"""How contexts are computed: as by default, if the bench is not small."""


def zipf_ids(count: int, vocab_size: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """[count] token ids; the chance of the r-th likeliest is as 1 / (r + 2.7) (Zipf and Mandelbrot).

    Which ids are likely is drawn as well, so that those often read do not lie side by side in a table.
    """
    rng = np.random.default_rng(seed)
    share = 1 / (np.arange(1, vocab_size + 1) + 2.7)
    ranks = np.searchsorted(np.cumsum(share / share.sum()), rng.random(count))
    return rng.permutation(vocab_size)[np.minimum(ranks, vocab_size - 1)]


def python_docs(
    preset: str, device: torch.device, train_bytes: int, vocab_size: int, **sections: dict[str, Any]
) -> TrainingInputs:
    """Text, tokens and embeddings as a preset has them, on python-docs, with changes by section."""
    values = load_settings(preset).model_dump()
    values["data"] |= {"train": "python-docs", "max_train_bytes": train_bytes}
    values = made_small(values)
    values["tokenizer"] |= {"vocab_size": vocab_size}
    for section, changes in sections.items():
        values[section] |= changes
    return prepare(Settings(**{**values, "device": str(device)}), lambda _: None)


def random_model(config: TandemConfig, device: torch.device, seed: int = 0) -> TandemForCausalLM:
    """A model with the weights that training starts from, and a random embedding of rows of length 4."""
    model = TandemForCausalLM(config).eval()
    with torch.no_grad():
        drawn = torch.randn(model.embedding.weight.shape, generator=generator_for(seed, "embedding"))
        model.embedding.weight.copy_(drawn * 4 / config.embed_dim**0.5)
    for block in (model.context_block, model.token_block):
        initialize_block(block, model, generator_for(seed, type(block).__name__))
    return model.to(device)
