"""Configuration of the two-block language model, and of an ensemble of such models."""

import math
from typing import Any

from transformers import PreTrainedConfig

from .cells_tandem import CELLS

LARGEST = {
    **{"vocab_size": 1 << 24, "embed_dim": 1 << 20, "context_dim": 1 << 20},
    **{"context_layers": 1 << 10, "token_layers": 1 << 10},
}
"""The largest sizes: a file that names larger ones would fill the memory, or build layers for hours."""


class TandemConfig(PreTrainedConfig):
    """Sizes and depths of a Tandem model.

    vocab_size        V, entries of the vocabulary.
    embed_dim         E, length of a token embedding.
    context_dim       C, length of the context vector.
    cell              the ContextBlock's recurrence, one of CELLS: "residual" (SPEC section 1), "gated".
    context_layers    layers of the ContextBlock.
    token_layers      layers of the TokenBlock.
    token_projection  whether a second matrix follows the GELU of every token layer.
    num_layers        shorthand that sets both depths; not to be given together with a different one.
    output_bias       whether the head, tied to the embedding, adds a bias for each token.
    boundary          "carry": the context runs on across documents; "reset": it is zero before each
                      `bos_token_id`, which then starts a document.
    weight_init_std   of the initial linear weights (SPEC section 1); none: one over the root of their inputs.
    bias_init_std     of the initial biases.
    layer_norm_eps    of all LayerNorms.
    int8              whether embedding and linear layers have 8-bit weights, for inference alone.

    Raises ValueError for sizes below 1 or beyond LARGEST, an epsilon that is not above 0, or contradictory
    depths. Also for an unknown cell or boundary, a reset without `bos_token_id`, what the cell cannot have,
    or a kernel that a hub would be asked for.
    """

    model_type = "tandem"
    _auto_class = "AutoConfig"  # its code travels with what is saved
    attribute_map = {"hidden_size": "embed_dim", "num_hidden_layers": "token_layers"}  # noqa: RUF012

    vocab_size: int = 50257
    embed_dim: int = 768
    context_dim: int = 500
    context_layers: int | None = None
    token_layers: int | None = None
    num_layers: int | None = None
    cell: str = "residual"
    token_projection: bool = False
    output_bias: bool = False
    boundary: str = "carry"
    weight_init_std: float | None = 0.1
    bias_init_std: float = 0.01
    layer_norm_eps: float = 1e-5
    int8: bool = False
    # The state has a fixed size, so no length is too long. Tools that cut text to windows read theirs here.
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: object) -> None:
        for depth in ("context_layers", "token_layers"):
            given = getattr(self, depth)
            if given is None:
                setattr(self, depth, 1 if self.num_layers is None else self.num_layers)
            elif self.num_layers is not None and given != self.num_layers:
                raise ValueError(
                    f"num_layers={self.num_layers} sets both depths, but {depth}={given}; give one of the two"
                )
        if self.max_position_embeddings == 1 << 20:  # of folders saved when this was the default
            self.max_position_embeddings = type(self).max_position_embeddings
        self.num_layers = None  # said; kept, it could contradict a depth that is changed later
        for size, largest in LARGEST.items():
            if not isinstance(getattr(self, size), int) or getattr(self, size) < 1:
                raise ValueError(f"{size}={getattr(self, size)} must be a whole number of at least 1")
            if getattr(self, size) > largest:
                raise ValueError(f"{size}={getattr(self, size)} must be at most {largest}")
        if not isinstance(self.layer_norm_eps, int | float) or not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps!r} must be a number above 0")
        labels = kwargs.get("num_labels")
        if isinstance(labels, int) and labels > LARGEST["embed_dim"]:
            raise ValueError(f"num_labels={labels} must be at most {LARGEST['embed_dim']}")
        for name, value in kwargs.items():
            if name.endswith("_implementation") and "/" in str(value):
                raise ValueError(f"{name}={value!r} names a kernel of a hub, and Tandem uses none")
        if self.cell not in CELLS:
            raise ValueError(f"cell={self.cell!r} must be {' or '.join(map(repr, CELLS))}")
        CELLS[self.cell]().check_config(self)
        if self.boundary not in ("carry", "reset"):
            raise ValueError(f"boundary={self.boundary!r} must be 'carry' or 'reset'")
        if self.boundary == "reset" and self.bos_token_id is None:
            raise ValueError("boundary='reset' needs bos_token_id, the token that starts a document")
        super().__post_init__(**kwargs)

    @property
    def depths(self) -> tuple[int, int]:
        """(context_layers, token_layers) as resolved from whatever was given."""
        return self.context_layers or 1, self.token_layers or 1

    @property
    def name(self) -> str:
        """The customary name of the depths, such as C2T1."""
        return f"C{self.context_layers}T{self.token_layers}"

    @property
    def configs(self) -> "list[TandemConfig]":
        """As of an ensemble of this model alone."""
        return [self]


SHARED = (
    *("vocab_size", "boundary", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("tie_word_embeddings", "int8"),
)
"""What the members of an ensemble have alike, and the ensemble too."""
MEMBER_FIELDS = (
    *("embed_dim", "context_dim", "context_layers", "token_layers", "cell", "token_projection"),
    *("output_bias", "weight_init_std", "bias_init_std", "layer_norm_eps", *SHARED),
)
"""What an ensemble keeps of the configuration of a member."""


class TandemEnsembleConfig(PreTrainedConfig):
    """Models whose probabilities are averaged.

    members    the configuration of each, MEMBER_FIELDS alone; all have SHARED alike.

    Raises ValueError for fewer than two, and for one that contradicts another or that TandemConfig refuses.
    """

    model_type = "tandem_ensemble"
    _auto_class = "AutoConfig"

    members: list[dict[str, Any]] | None = None
    max_position_embeddings: int = TandemConfig.max_position_embeddings
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # Without any it is the default, with which the library compares what it writes.
        if self.members is not None:
            unknown = {name for values in self.members for name in values}.difference(MEMBER_FIELDS)
            if unknown:
                raise ValueError(f"a member has a field {min(unknown)!r}, which is none of an ensemble's")
            configs = self.configs
            if len(configs) < 2:
                raise ValueError("an ensemble has at least two members")
            for name in SHARED:
                values = [getattr(config, name) for config in configs]
                for value in values:
                    if value != values[0]:
                        raise ValueError(f"members differ in {name}: {values[0]!r} and {value!r}")
                kwargs[name] = values[0]
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, configs: list[TandemConfig]) -> "TandemEnsembleConfig":
        """Of models with these configurations."""
        return cls(members=[{name: getattr(one, name) for name in MEMBER_FIELDS} for one in configs])

    @property
    def configs(self) -> list[TandemConfig]:
        """Of each member."""
        return [TandemConfig(**values) for values in self.members or ()]

    @property
    def name(self) -> str:
        """Those of the members, such as C2T2 + C2T2."""
        return " + ".join(config.name for config in self.configs)


__all__ = ["TandemConfig", "TandemEnsembleConfig"]
