"""The weights that a run starts from, drawn from its seed by the definition (SPEC section 1).

Matrices are N(0, s²), s being the configuration's, or one over the square root of what they read; biases are
N(0, b²); LayerNorms are 1 and 0. Each block has random numbers of its own, of its depth and the seed.
"""

import copy

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from tandem.audit.plain import draws_of
from tandem.model import TandemConfig, TandemForCausalLM, TokenBlock
from tandem.tokens.store import Ids


@torch.no_grad()
def drawn_block(model: TandemForCausalLM, block: nn.Module, generator: torch.Generator) -> None:
    """Draw one block of a model in place."""
    config = model.config
    for module in block.modules():
        if isinstance(module, nn.Linear):
            std = config.weight_init_std
            scale = module.in_features**-0.5 if std is None else std
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * scale)
            if module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * config.bias_init_std)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if block is model.context_block:  # a cell may start in its own way, which its file defines
        for module in block.modules():
            model.context_block.initialize(module)


@torch.no_grad()
def initial_model(
    config: PreTrainedConfig, table: np.ndarray, train: Ids, depths: tuple[int, int], seed: int
) -> TandemForCausalLM:
    """An untrained model of these depths: embedding `table` [V, E], output bias the log frequency of each
    token of `train` [T] (half an occurrence more), blocks drawn from the seed."""
    config = copy.deepcopy(config)
    assert isinstance(config, TandemConfig)
    config.context_layers, config.token_layers = depths
    model = TandemForCausalLM(config).eval()
    model.embedding.weight.copy_(torch.from_numpy(table))
    model.embed_norm.weight.fill_(1.0)
    model.embed_norm.bias.zero_()
    if model.lm_head.bias is not None:
        counts = np.bincount(np.asarray(train).astype(np.int64), minlength=config.vocab_size) + 0.5
        model.lm_head.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
    drawn_block(model, model.context_block, draws_of(seed, "context_block", depths[0]))
    drawn_block(model, model.token_block, draws_of(seed, "token_block", depths[1]))
    return model


@torch.no_grad()
def started_from(block: TokenBlock, head: TokenBlock) -> None:
    """Let a drawn TokenBlock start as the token layers of phase 1, in place.

    Their last layers correspond, then their first ones if both have two or more, then those between in order.
    A layer without a counterpart adds nothing: its last matrix and that one's bias are zero.
    """
    ours, theirs = list(range(len(block.layers))), list(range(len(head.layers)))
    counterpart = {ours.pop(): theirs.pop()}
    if ours and theirs:
        counterpart[ours.pop(0)] = theirs.pop(0)
    counterpart.update(zip(ours, theirs, strict=False))
    for number, layer in enumerate(block.layers):
        if number in counterpart:
            layer.load_state_dict(head.layers[counterpart[number]].state_dict())
        else:
            last = layer.linear if layer.projection is None else layer.projection
            assert isinstance(last, nn.Linear)
            for parameter in last.parameters():
                parameter.zero_()
