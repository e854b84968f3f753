"""The two-block language model (SPEC section 1).

Shape letters: B batch, T tokens, V vocabulary, E embed_dim, C context_dim.

A ContextBlock folds token after token into one context vector; a TokenBlock turns the context and the
current token into a prediction of the next one:

    e_t = embed_norm(embedding[token_t])
    c_t = context_block(c_{t-1}, e_t)
    x_t = token_block(c_{t-1}, c_t, e_t)
    logits_t = x_t · embeddingᵀ
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .cache_tandem import TandemCache
from .configuration_tandem import TandemConfig

Drop = Callable[[Tensor], Tensor]


class ContextLayer(nn.Module):
    """c' = LayerNorm(c + GELU(W·[c; e] + b)), W: C×(C+E)."""

    def __init__(self, context_dim: int, embed_dim: int, layer_norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim + embed_dim, context_dim)
        self.norm = nn.LayerNorm(context_dim, eps=layer_norm_eps)

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """context [..., C], token_embeds [..., E] → [..., C]."""
        return self.norm(context + F.gelu(self.linear(torch.cat((context, token_embeds), dim=-1))))


class ContextBlock(nn.Module):
    """`context_layers` ContextLayers in a row; each one reads the same token embedding."""

    def __init__(self, config: TandemConfig) -> None:
        super().__init__()
        self.context_dim = config.context_dim
        self.layers = nn.ModuleList(
            ContextLayer(config.context_dim, config.embed_dim, config.layer_norm_eps)
            for _ in range(config.depths[0])
        )

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """One step: context [..., C] before the token, token_embeds [..., E] → context after it."""
        for layer in self.layers:
            context = layer(context, token_embeds)
        return context

    def unroll(
        self,
        token_embeds: Tensor,
        start: Tensor | None = None,
        restart: Tensor | None = None,
        frozen: Tensor | None = None,
        drop: Drop | None = None,  # noqa: ARG002 (nothing lies between the layers of one step but the context)
    ) -> tuple[Tensor, Tensor]:
        """Contexts before and after every token; arguments and result as in `sequential_contexts`."""
        return sequential_contexts(self, token_embeds, start, restart, frozen)


class GatedLayer(nn.Module):
    """h' = f⊙h + (1 − f)⊙tanh(z), with f = (1 − 1/128)·σ(y) and [y; z] = W·u + b.

    u is e_t, and above the first layer [e_t; the layer below before the token; the same after it]. Neither f
    nor z depends on h, so the recurrence is linear in it, and over a whole stream only the cheap part of it,
    one multiplication and one addition an element, is sequential (Martin & Cundy 2018, arXiv:1709.04057;
    Bradbury et al. 2017, arXiv:1611.01576; Feng et al. 2024, arXiv:2410.01201). The bound on f makes every
    block forget: what is left of a state after n tokens is at most (1 − 1/128)ⁿ of it.

    The layer computes what is kept of its state and what is added to it; the block keeps the state.
    """

    most_kept = 1 - 1 / 128

    def __init__(self, width: int, embed_dim: int, below: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(embed_dim + 2 * below, 2 * width)

    def forward(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """u [..., E or more] → what of the state is kept, f, and what is added to it, both [..., width]."""
        made = self.linear(read)
        if torch.is_autocast_enabled(made.device.type):
            made = made.float()  # what is kept of a state lies nearer to 1 than half precision can tell
        forget, write = made.chunk(2, dim=-1)
        keep = self.most_kept * forget.sigmoid()
        return keep, (1 - keep) * write.tanh()

    @torch.no_grad()
    def spread_memory(self) -> None:
        """Forget gates that start with time constants from about one token to fifty, evenly in log odds."""
        self.linear.bias[: self.width] = torch.linspace(-2.0, 4.0, self.width)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *more: Any) -> None:
        for name in ("weight", "bias"):  # as they were called when the layer was an nn.Linear itself
            if f"{prefix}{name}" in state_dict:
                state_dict[f"{prefix}linear.{name}"] = state_dict.pop(f"{prefix}{name}")
        super()._load_from_state_dict(state_dict, prefix, *more)


class GatedContextBlock(nn.Module):
    """`context_layers` GatedLayers, each with an equal part of the context vector as its state.

    A layer reads the token embedding and the states of the layer below, before and after the token.
    """

    def __init__(self, config: TandemConfig) -> None:
        super().__init__()
        depth = config.depths[0]
        self.context_dim = config.context_dim
        width = config.context_dim // depth
        self.layers: Any = nn.ModuleList(
            GatedLayer(width, config.embed_dim, width if number else 0) for number in range(depth)
        )

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """One step: context [..., C] before the token, token_embeds [..., E] → context after it."""
        states: list[Tensor] = []
        read = token_embeds
        for layer, state in zip(self.layers, context.chunk(len(self.layers), dim=-1), strict=True):
            keep, add = layer(read)
            states.append(torch.addcmul(add, keep, state))
            read = torch.cat((token_embeds, state, states[-1]), dim=-1)
        return torch.cat(states, dim=-1)

    def unroll(
        self,
        token_embeds: Tensor,
        start: Tensor | None = None,
        restart: Tensor | None = None,
        frozen: Tensor | None = None,
        drop: Drop | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Contexts before and after every token; arguments and result as in `sequential_contexts`.

        Layer after layer, all tokens of a layer at once. `drop` is applied to what a layer reads of the layer
        below, [B, T, n] (dropout, in training).
        """
        embeds = token_embeds.transpose(0, 1)  # [T, B, E], as the recurrence runs
        batch = embeds.shape[1]
        if start is None:
            start = embeds.new_zeros(batch, self.context_dim)
        restart = None if restart is None else restart.t()[..., None]
        frozen = None if frozen is None else frozen.t()[..., None]
        if restart is not None and frozen is not None:
            restart = restart & ~frozen
        previous, current = [], []
        read = embeds
        for layer, state in zip(self.layers, start.chunk(len(self.layers), dim=-1), strict=True):
            keep, add = layer(read)
            if restart is not None:
                keep = keep.masked_fill(restart, 0.0)
            if frozen is not None:
                keep, add = keep.masked_fill(frozen, 1.0), add.masked_fill(frozen, 0.0)
            after = linear_recurrence(keep, add, state)
            before = torch.cat((state[None], after[:-1]))
            if restart is not None:
                before = before.masked_fill(restart, 0.0)
            previous.append(before)
            current.append(after)
            below = torch.cat((before, after), dim=-1)
            if drop is not None:
                below = drop(below.transpose(0, 1)).transpose(0, 1)
            read = torch.cat((embeds, below), dim=-1)
        return torch.cat(previous, dim=-1).transpose(0, 1), torch.cat(current, dim=-1).transpose(0, 1)


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: Tensor, add: Tensor, start: Tensor) -> Tensor:
        states = torch.empty_like(add)
        state = start
        for t in range(len(add)):
            state = torch.addcmul(add[t], keep[t], state, out=states[t])
        ctx.save_for_backward(keep, states, start)
        return states

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, states, start = ctx.saved_tensors
        (gradient,) = upstream
        add_grad = torch.empty_like(states)
        flowing = torch.zeros_like(start)
        for t in range(len(states) - 1, -1, -1):
            # What reaches the state after token t: its own gradient, and that of all later states.
            torch.add(gradient[t], flowing, out=add_grad[t])
            flowing = add_grad[t] * keep[t]
        before = torch.cat((start[None], states[:-1]))
        return add_grad * before, add_grad, flowing


def linear_recurrence(keep: Tensor, add: Tensor, start: Tensor) -> Tensor:
    """h_t = keep_t ⊙ h_{t-1} + add_t from h_{-1} = start, with gradients for all three.

    keep and add [T, ..., n], start [..., n] → [T, ..., n].
    """
    return _LinearRecurrence.apply(keep, add, start)


class TokenLayer(nn.Module):
    """x' = LayerNorm(x + GELU(W·[c; x] + b)), W: E×(C+E); without a context W·x, W: E×E.

    `context_norm` is a LayerNorm of c before that, or none: residual contexts come out of one already. With
    `projection` it is P·GELU(…), P: E×E, as in a transformer's feed-forward layer (Vaswani et al. 2017): GELU
    alone hardly takes anything away from x.
    """

    def __init__(
        self,
        context_dim: int,
        embed_dim: int,
        layer_norm_eps: float = 1e-5,
        context_norm: bool = False,
        projection: bool = False,
    ) -> None:
        super().__init__()
        self.context_norm = nn.LayerNorm(context_dim, eps=layer_norm_eps) if context_norm else None
        self.linear = nn.Linear(context_dim + embed_dim, embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim, bias=False) if projection else None
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)

    def forward(self, context: Tensor | None, x: Tensor, drop: Drop | None = None) -> Tensor:
        """context [..., C] or none, x [..., E] → [..., E]; `drop` is applied to the context, in training."""
        read = x
        if context is not None:
            context = context if self.context_norm is None else self.context_norm(context)
            read = torch.cat((context if drop is None else drop(context), x), dim=-1)
        change = F.gelu(self.linear(read))
        return self.norm(x + (change if self.projection is None else self.projection(change)))


class TokenBlock(nn.Module):
    """`token_layers` TokenLayers; which context each one reads is `reads` (the original's "G" plan).

    The last layer reads the current context; with two or more layers, the first reads the previous one;
    those between read none.
    """

    def __init__(self, config: TandemConfig) -> None:
        super().__init__()
        depth = config.depths[1]
        self.reads: tuple[str | None, ...] = tuple(
            "current" if i == depth - 1 else "previous" if i == 0 else None for i in range(depth)
        )
        self.layers = nn.ModuleList(
            TokenLayer(
                config.context_dim if reads else 0,
                config.embed_dim,
                config.layer_norm_eps,
                context_norm=reads is not None and config.cell == "gated",
                projection=config.token_projection,
            )
            for reads in self.reads
        )

    def forward(
        self,
        previous_context: Tensor,
        current_context: Tensor,
        token_embeds: Tensor,
        drop: Drop | None = None,
    ) -> Tensor:
        """Contexts [..., C] before and after the token, token_embeds [..., E] → [..., E].

        `drop` is applied to the context that a layer reads (dropout, in training).
        """
        contexts = {"previous": previous_context, "current": current_context, None: None}
        x = token_embeds
        for layer, reads in zip(self.layers, self.reads, strict=True):
            x = layer(contexts[reads], x, drop)
        return x


AnyContextBlock = ContextBlock | GatedContextBlock
CONTEXT_BLOCKS: dict[str, type[AnyContextBlock]] = {"residual": ContextBlock, "gated": GatedContextBlock}


def sequential_contexts(
    context_block: AnyContextBlock,
    token_embeds: Tensor,
    start: Tensor | None = None,
    restart: Tensor | None = None,
    frozen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Contexts by their definition, token after token: the ground truth of every faster way.

    token_embeds [B, T, E]; start [B, C] context before the first token (none: zero); restart [B, T] bool,
    where the context is zeroed before the token is read; frozen [B, T] bool, where the token is passed over
    and the context stays as it was (padding).
    Returns previous and current contexts, both [B, T, C]: before and after each token.
    """
    batch, length, _ = token_embeds.shape
    context = token_embeds.new_zeros(batch, context_block.context_dim) if start is None else start
    if restart is not None and frozen is not None:
        restart = restart & ~frozen
    previous, current = [], []
    for t in range(length):
        if restart is not None:
            context = context.masked_fill(restart[:, t, None], 0.0)
        previous.append(context)
        after = context_block(context, token_embeds[:, t])
        context = after if frozen is None else torch.where(frozen[:, t, None], context, after)
        current.append(context)
    return torch.stack(previous, dim=1), torch.stack(current, dim=1)


FORMER_NAMES = {  # without `$`: transformers reverses them where it saves a model that it loaded so
    rf"^context_block\.layers\.(\d+)\.{name}": rf"context_block.layers.\1.linear.{name}"
    for name in ("weight", "bias")
}
"""What weights were called when gated layers were matrices themselves, and what they are called now."""


def _start_rare(bias: Tensor | None, old: int) -> None:
    """Fill a head's bias [V] after its `old` entries: all new ones together count as the least of those.

    A bias holds log frequencies, so zero would be a frequency of 1.
    """
    if bias is not None and 0 < old < len(bias):
        bias[old:] = bias[:old].min() - math.log(len(bias) - old)


class TandemForCausalLM(PreTrainedModel, GenerationMixin):
    """ContextBlock, TokenBlock and a head tied to the embedding, as a Hugging Face causal LM."""

    config_class = TandemConfig
    # Saved folders carry the code, so that they load with `trust_remote_code` where Tandem is absent.
    _auto_class = "AutoModelForCausalLM"
    base_model_prefix = ""
    _input_embed_layer = "embedding"
    _tied_weights_keys = {"lm_head.weight": "embedding.weight"}  # noqa: RUF012
    _no_split_modules = ["ContextLayer", "GatedLayer", "TokenLayer"]  # noqa: RUF012
    _is_stateful = True

    def __init__(self, config: TandemConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.embed_norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.context_block = CONTEXT_BLOCKS[config.cell](config)
        self.token_block = TokenBlock(config)
        self.lm_head = nn.Linear(config.embed_dim, config.vocab_size, bias=config.output_bias)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @classmethod
    def from_pretrained(cls, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any) -> Any:
        """As PreTrainedModel does; weights are also known by their former names."""
        return super().from_pretrained(*args, key_mapping=FORMER_NAMES | (key_mapping or {}), **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # By leaves, since transformers passes over custom modules that have no parameter of their own.
        if isinstance(module, nn.Linear):
            std = self.config.weight_init_std
            init.normal_(module.weight, std=module.in_features**-0.5 if std is None else std)
            if module.bias is not None:  # the head may have none, and its weights are the embedding's
                init.normal_(module.bias, std=self.config.bias_init_std)
            for layer in self.context_block.layers:
                if isinstance(layer, GatedLayer) and layer.linear is module:
                    layer.spread_memory()
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @torch.no_grad()
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As PreTrainedModel does; new tokens start as rare as the rarest old one, where a bias says so.

        Their rows are about the mean of all, or, without `mean_resizing`, drawn with the deviation of the
        old ones.
        """
        old = self.embedding.num_embeddings
        embedding: nn.Embedding = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        if embedding.num_embeddings > old:
            if not mean_resizing:
                for weight in dict.fromkeys((embedding.weight, self.lm_head.weight)):  # once where tied
                    weight[old:].normal_(std=float(weight[:old].std()))
            _start_rare(self.lm_head.bias, old)  # a head that is not tied got the mean, or about zero
        return embedding

    @torch.no_grad()
    def _adjust_bias(self, output_embeddings: nn.Linear, input_embeddings: nn.Parameter) -> None:
        old = 0 if output_embeddings.bias is None else len(output_embeddings.bias)
        super()._adjust_bias(output_embeddings, input_embeddings)  # pads it with zeros
        _start_rare(output_embeddings.bias, old)

    def num_params(self) -> dict[str, int]:
        """Parameters by part and in total; the tied head adds its bias, if it has one."""
        parts = ("embedding", "embed_norm", "context_block", "token_block")
        counts = {part: sum(p.numel() for p in getattr(self, part).parameters()) for part in parts}
        counts["head"] = 0 if self.lm_head.bias is None else self.lm_head.bias.numel()
        return counts | {"total": sum(counts.values())}

    def embed(self, input_ids: Tensor) -> Tensor:
        """e_t of SPEC section 1: ids [...] → normalised embeddings [..., E]."""
        return self.embed_norm(self.embedding(input_ids))

    def restarts(self, input_ids: Tensor) -> Tensor | None:
        """Where the context is zeroed before a token is read, like `input_ids`; none if it never is."""
        return input_ids == self.config.bos_token_id if self.config.boundary == "reset" else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Logits of the next token at every position.

        input_ids [B, T] or inputs_embeds [B, T, E] (before `embed_norm`); attention_mask [B, ≥T], where 0
        freezes the state (the last T columns count); past_key_values continues a stream; labels [B, T] as
        in every causal LM (shifted inside, -100 ignored); logits_to_keep: only the last so many positions,
        or those indices.
        Returns logits [B, T or fewer, V], loss (scalar) with labels, and past_key_values with use_cache.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if past_key_values is not None and not isinstance(past_key_values, TandemCache):
            kind = type(past_key_values).__name__
            raise ValueError(
                f"past_key_values is a {kind}, which cannot hold a context; give the one that the model "
                "returned, or none to start"
            )
        if input_ids is not None:
            token_embeds, restart = self.embed(input_ids), self.restarts(input_ids)
        else:
            if self.config.boundary == "reset":
                raise ValueError(
                    "boundary='reset' needs input_ids: embeddings do not tell where documents start"
                )
            token_embeds, restart = self.embed_norm(inputs_embeds), None
        length = token_embeds.shape[1]
        frozen = None if attention_mask is None else attention_mask[:, -length:] == 0
        if frozen is not None and not frozen.any():
            frozen = None
        start = None if past_key_values is None else past_key_values.context
        previous, current = self.context_block.unroll(token_embeds, start, restart, frozen)

        use_cache = use_cache if use_cache is not None else self.config.use_cache and not self.training
        if use_cache:
            past_key_values = TandemCache() if past_key_values is None else past_key_values
            past_key_values.store(current[:, -1], length)

        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = self.token_block(previous[:, kept], current[:, kept], token_embeds[:, kept])
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None
        )
        return output if return_dict is not False else output.to_tuple()


__all__ = ["TandemCache", "TandemConfig", "TandemForCausalLM"]
