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
from .cell_tandem import ContextBlock, Drop
from .cells_tandem import CELLS
from .configuration_tandem import TandemConfig
from .quantized_tandem import Int8Embedding, Int8Head, Int8Linear, int8_linears, stored_numbers


class TokenLayer(nn.Module):
    """x' = LayerNorm(x + GELU(W·[c; x] + b)), W: E×(C+E); without a context W·x, W: E×E.

    `context_norm` is a LayerNorm of c before that, or none, as the cell says. With `projection` it is
    P·GELU(…), P: E×E, as in a transformer's feed-forward layer (Vaswani et al. 2017): GELU alone hardly takes
    anything away from x.
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
        depth, norm = config.depths[1], CELLS[config.cell]().context_norm
        self.reads: tuple[str | None, ...] = tuple(
            "current" if i == depth - 1 else "previous" if i == 0 else None for i in range(depth)
        )
        self.layers = nn.ModuleList(
            TokenLayer(
                config.context_dim if reads else 0,
                config.embed_dim,
                config.layer_norm_eps,
                context_norm=reads is not None and norm,
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
    _is_stateful = True

    def __init__(self, config: TandemConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.embed_norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        block: Any = CELLS[config.cell]()
        self.context_block: ContextBlock = block(config)
        self.token_block = TokenBlock(config)
        self.lm_head = nn.Linear(config.embed_dim, config.vocab_size, bias=config.output_bias)
        self._no_split_modules = {
            type(layer).__name__ for block in (self.context_block, self.token_block) for layer in block.layers
        }
        if config.int8:
            self.to_int8()
        self.post_init()

    def to_int8(self) -> "TandemForCausalLM":
        """Round the embedding and all linear layers to 8 bits, in place, for inference; returns the model.

        The head reads the embedding's rows, where it is tied to it. Saved models are a quarter as large.
        """
        self.config.int8 = True
        int8_linears(self.context_block, exact=True)
        int8_linears(self.token_block)
        table, head = Int8Embedding(self.embedding.weight), self.lm_head
        tied = self.config.tie_word_embeddings
        self.add_module("embedding", table)
        self.add_module("lm_head", Int8Head(table, head.bias) if tied else Int8Linear(head))
        self._tied_weights_keys = {}
        self.all_tied_weights_keys = {}
        return self.requires_grad_(False)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # By leaves, since transformers passes over custom modules that have no parameter of their own.
        if isinstance(module, nn.Linear):
            std = self.config.weight_init_std
            init.normal_(module.weight, std=module.in_features**-0.5 if std is None else std)
            if module.bias is not None:  # the head may have none, and its weights are the embedding's
                init.normal_(module.bias, std=self.config.bias_init_std)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        if any(module is own for own in self.context_block.modules()):
            self.context_block.initialize(module)

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
        if self.config.int8:
            raise ValueError("a model of 8-bit weights takes no new tokens; add them before `to_int8`")
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
        counts = {part: stored_numbers(getattr(self, part)) for part in parts}
        counts["head"] = 0 if self.lm_head.bias is None else self.lm_head.bias.numel()
        return counts | {"total": sum(counts.values())}

    def embed(self, input_ids: Tensor) -> Tensor:
        """e_t of SPEC section 1: ids [...] → normalised embeddings [..., E]."""
        return self.embed_norm(self.embedding(input_ids))

    def reset_mask(self, input_ids: Tensor) -> Tensor | None:
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
            token_embeds, reset_mask = self.embed(input_ids), self.reset_mask(input_ids)
        else:
            if self.config.boundary == "reset":
                raise ValueError(
                    "boundary='reset' needs input_ids: embeddings do not tell where documents start"
                )
            token_embeds, reset_mask = self.embed_norm(inputs_embeds), None
        length = token_embeds.shape[1]
        frozen = None if attention_mask is None else attention_mask[:, -length:] == 0
        if frozen is not None and not frozen.any():
            frozen = None
        start = None if past_key_values is None else past_key_values.context
        previous, current = self.context_block.unroll(token_embeds, start, reset_mask, frozen)

        use_cache = use_cache if use_cache is not None else self.config.use_cache and not self.training
        if use_cache:
            past_key_values = TandemCache() if past_key_values is None else past_key_values
            past_key_values.store(current[:, -1], length)

        wanted = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = self.token_block(previous[:, wanted], current[:, wanted], token_embeds[:, wanted])
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None
        )
        return output if return_dict is not False else output.to_tuple()


__all__ = ["TandemCache", "TandemConfig", "TandemForCausalLM"]
