"""The sections of the settings: text and tokens, the two blocks, both phases, baselines, executors."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from tandem.settings.section import (
    OPTION,
    Depth,
    NonNegativeFloat,
    OneOf,
    Place,
    Positive,
    PositiveFloat,
    Probability,
    Section,
    Width,
)


class DataSettings(Section):
    """Text: where it comes from and how it is cut into documents and splits."""

    path: ClassVar[str] = "data"

    train: Place = "python-docs"
    """Training text: `python-docs` (the embedded default), a .txt, .jsonl or .parquet file, a directory or
    glob of them, or `hf:NAME[:SPLIT]`. Files may be gzipped. SPLIT may be a slice: `train[:2000]`."""
    validation: Place | None = None
    """Validation text, same forms; none: a part of the training documents is set aside."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the training text (in bytes, by whole documents) set aside when `validation` is not given."""
    split_seed: int = 0
    """Which documents are set aside, and which ones `max_train_bytes` keeps."""
    max_train_bytes: Positive | None = None
    """Use about this much training text (UTF-8 bytes, whole documents drawn at random); none: all."""
    max_document_bytes: Annotated[int, Field(gt=0, le=1 << 40)] = 1 << 28
    """Largest document, in bytes of UTF-8, and largest line of a .jsonl file; one that is longer is refused,
    not cut. Reading takes a few times as much memory, whatever a file holds."""
    txt_documents: str = "file"
    """What a document is in .txt files: `file`, `blank-line` (paragraphs), or `start:REGEX` (a document
    starts at every line that matches within its first 4,096 characters)."""
    separator: str = "eos"
    """What stands between documents: `eos` (the end-of-text token before each) or a text (may be empty). A
    blank line is $'\\n\\n' in a shell, "`n`n" in PowerShell and "\\n\\n" in a settings file."""
    validation_separator: str | None = None
    """The same for validation text; none: as `separator`."""
    allow_overlap: tuple[str, ...] = ()
    """Validation sources, named as in `validation`, whose documents may also occur in training."""

    @field_validator("train", "validation")
    @classmethod
    def _can_be_read_again(cls, value: str | None) -> str | None:
        if value == "-":
            raise ValueError(
                "standard input can be read once only, and the audit reads the text again; save it in a file"
            )
        return value

    @property
    def separators(self) -> dict[str, str]:
        """What stands between the documents of each split."""
        validation = self.separator if self.validation_separator is None else self.validation_separator
        return {"train": self.separator, "validation": validation}


class TokenizerSettings(Section):
    """Tokens: the vocabulary."""

    path: ClassVar[str] = "tokenizer"

    source: Place = "bpe"
    """`bpe` (a byte-level BPE trained on the training split only), a tokenizer.json file, a tokenizer
    folder, or a hub name such as `gpt2`."""
    vocab_size: Annotated[int, Field(ge=257, le=1 << 24)] = 8192
    """Entries of the trained BPE, end-of-text token included; not used with another source."""
    processes: Annotated[int, Field(gt=0, le=1024)] = 1
    """Processes that encode a large text together, shard by shard. Further ones, on any machine that shares
    the cache, join when they are given the same command. (One alone uses all cores for most of the work.)"""


class EmbeddingSettings(Section):
    """Token embeddings, which are also the output head."""

    path: ClassVar[str] = "embeddings"

    source: Place = "spectral"
    """`spectral` (truncated SVD of the PPMI of co-occurrences in the training tokens, the same for every
    seed), `random` (drawn from the seed), or the input embedding of a causal LM. That is a hub name such as
    `gpt2`, a model folder, or a .safetensors file."""
    trained: bool = False
    """Recipe `original`: train the embedding (hence the head) in phase 2; contexts are then recomputed before
    every epoch, and held in memory whatever `contexts.keep` says. (Recipe `predictive` trains it in phase 1,
    and phase 2 keeps it.)"""
    window: Positive = 4
    """Spectral: co-occurrences are counted up to this many tokens apart."""
    norm: PositiveFloat = 4.0
    """Spectral and random: root mean square length of an embedding vector."""


class ModelSettings(Section):
    """Sizes of the two blocks; their depths come from `configurations`."""

    path: ClassVar[str] = "model"

    embed_dim: Width = 256
    """E, the length of an embedding vector."""
    context_dim: Width = 160
    """C, the length of the context vector (at least 2: a LayerNorm of one element is constant)."""
    cell: Annotated[str, OneOf("tandem.model.cells_tandem:CELLS")] = "residual"
    """Layers of the ContextBlock: `residual` (the original's), or `gated` (a gated linear recurrence, whose
    contexts need no sequential scan; the layers share `context_dim` evenly)."""
    token_projection: bool = False
    """Let a second matrix follow the GELU of every token layer, so that it can take away as well as add."""
    output_bias: bool = False
    """Give the head a bias for each token, which starts from the token's frequency in the training text."""
    boundary: Literal["carry", "reset"] = "carry"
    """At document starts: carry the context on, or reset it to zero."""
    weight_init_std: NonNegativeFloat | None = 0.1
    """Standard deviation of the initial linear weights; none: one over the root of their inputs."""
    bias_init_std: NonNegativeFloat = 0.01
    """Standard deviation of the initial biases."""


class ContextSettings(Section):
    """How contexts are computed for training and evaluation."""

    path: ClassVar[str] = "contexts"

    method: Literal["scan", "loop"] = "scan"
    """`scan` (segments in parallel, each with a burn-in) or `loop` (the sequential definition, slow)."""
    keep: Literal["auto", "memory", "disk", "recompute"] = "auto"
    """Where contexts of a whole text are: in `memory`, on `disk` (memory-mapped, rounded to bf16), or
    computed again piece by piece in every epoch (`recompute`). With `disk` those of validation are computed
    again. Memory does not grow with the text but for the first. `auto`: the first of these for which half
    of what is free suffices."""
    segment_length: Positive = 512
    """Tokens of a segment of the segment-parallel scan (of `residual`), burn-in not counted. Streams that are
    no longer are computed by the loop."""
    burn_in: Positive | Literal["auto"] = "auto"
    """Tokens read before each segment to reach its context; `auto` measures how fast the block forgets."""
    tolerance: PositiveFloat = 1e-5
    """Largest allowed difference (absolute, per element) between scan and loop; more is an error."""
    check_tokens: Positive = 2048
    """Tokens on which the scan is compared with the loop, each time; four segments at least."""
    rank_positions: Positive = 10_000
    """Effective rank is computed on at most this many positions."""


class Phase1Settings(Section):
    """Phase 1 of recipe `original`: Jacobi sweeps teach the ContextBlock contexts that spread out (OACD)."""

    path: ClassVar[str] = "phase1"

    max_iterations: Annotated[int, Field(ge=2)] = 60
    """At most this many iterations; the random start counts as the first."""
    batch_positions: Annotated[int, Field(ge=2)] = 5000
    """Consecutive positions of one OACD batch; gradients are averaged over all batches of a sweep."""
    tokens_per_step: Positive | None = None
    """Sweep over this many training tokens, in windows of `batch_positions` spread evenly over the text.
    None: over all of it, as the original does. Two windows of 10,000 come closer to the whole text's contexts
    than four of 5,000 (docs/results/performance.md)."""
    lr: PositiveFloat = 0.002
    """Adam's learning rate; one step an iteration."""
    max_grad_norm: PositiveFloat = 2.0
    """The averaged gradient is clipped to this norm."""
    start_std: NonNegativeFloat = 0.01
    """Standard deviation of the random contexts at the start."""
    noise_std: NonNegativeFloat = 0.1
    """Standard deviation of the noise added to the contexts that a sweep reads."""
    centroid_weight: NonNegativeFloat = 0.1
    """Weight of the squared centroid in the OACD loss."""
    convergence_mse: PositiveFloat = 0.03
    """A position has converged when its mean squared change between two iterations is below this."""
    convergence_stop: Annotated[float, Field(gt=0)] = 0.9
    """Stop when this share of positions has converged; above 1: never."""


class PredictionSettings(Section):
    """Phase 1 of recipe `predictive`: ContextBlock and embedding learn to predict the next token, through
    token layers of its own."""

    path: ClassVar[str] = "prediction"

    max_epochs: Positive = 12
    """Passes over the training tokens; all are made, as the learning rate falls to zero over them."""
    head_layers: Annotated[tuple[Depth, ...], Field(min_length=1)] = (1, 2)
    """Depths of the TokenBlocks through which it predicts, side by side, all with the same weight."""
    streams: Positive = 32
    """The text is cut into so many streams, read side by side."""
    window: Positive = 64
    """Tokens of a stream per optimizer step; no gradient flows further back, the contexts do."""
    lr: PositiveFloat = 0.006
    """AdamW's largest learning rate; it rises over the first tenth of the steps (100 at most) and
    falls linearly to zero."""
    decay_per_epoch: NonNegativeFloat = 1.75
    """Without gradients, matrices (the embedding included) would shrink to exp(-this) in an epoch at the
    largest rate. AdamW's weight decay is this over `lr` and the steps of an epoch, which suits short and long
    texts alike (Wang & Aitchison 2024, arXiv:2405.13698)."""
    dropout: Probability = 0.2
    """Of contexts where they are read; like the other two the same elements all along a window."""
    embed_dropout: Probability = 0.1
    """Of token embeddings where they are read."""
    output_dropout: Probability = 0.1
    """Of what the softmax reads."""
    negatives: Positive | None = 512
    """Tokens drawn for the softmax of a step beside its own targets, corrected for their chance to be in it;
    none: the whole vocabulary. Scores are always of the whole vocabulary."""
    sample_positions: Positive = 2048
    """At most so many positions of a step share such a sample; larger steps have several. A sample grows with
    the targets in it, and with it what each position costs, while a small one estimates worse."""
    split_tokens: Probability = 0.2
    """Chance that a token is read as the two that a BPE joined it from, and each of these again. So in the
    first three quarters of the epochs, drawn anew in each (after BPE-dropout, Provilkov et al. 2020,
    arXiv:1910.13267). Tokens of other tokenizers, and of texts of more than 400,000 tokens, stay whole."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""


class AdaptationSettings(Section):
    """Recipe `adapted`: all but the TokenBlock is that of a trained model, and stays as it is."""

    path: ClassVar[str] = "adaptation"

    model: Place = ""
    """Folder of the trained model; `tandem adapt` sets this and all that must be the same."""


class Phase2Settings(Section):
    """Phase 2: the TokenBlock learns to predict the next token from frozen contexts."""

    path: ClassVar[str] = "phase2"

    start: Literal["random", "phase1"] = "random"
    """Initial weights: drawn from the seed, or (recipe `predictive`) those of phase 1's token layers. These
    are of the same depth, else of the nearest. Then the last layers are taken over, others start by
    changing nothing."""

    max_epochs: Positive = 20
    """At most this many passes over the training tokens."""
    patience: Positive = 1
    """Stop after this many epochs in a row without a better validation loss; the best epoch counts."""
    batch_positions: Positive = 4096
    """Positions of one optimizer step."""
    shuffle: bool = False
    """Draw the positions of a batch at random in every epoch, from 65,536 at a time, in blocks of 512 from
    all over the text. Otherwise they are consecutive, in order."""
    lr: PositiveFloat = 0.001
    """Adam's (with a decay AdamW's) largest learning rate."""
    schedule: Literal["constant", "linear"] = "constant"
    """Of the learning rate: `constant` or `linear`. That is a rise over the first tenth of the steps (50 at
    most) and a fall to zero over `max_epochs`."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decay of matrices."""
    dropout: Probability = 0.0
    """Of contexts where they are read."""
    embed_dropout: Probability = 0.0
    """Of token embeddings where the TokenBlock reads them."""
    output_dropout: Probability = 0.0
    """Of what the softmax reads."""
    negatives: Positive | None = None
    """As `prediction.negatives`; none: the whole vocabulary."""
    sample_positions: Positive = 2048
    """As `prediction.sample_positions`."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    chunk_positions: Positive = 512
    """Positions whose logits over the whole vocabulary are held at once (memory only, not results)."""


class LstmSettings(Section):
    """The LSTM baseline: one embedding for input and output, truncated backpropagation through time."""

    path: ClassVar[str] = "baselines.lstm"

    layers: Depth = 1
    """Layers; their width follows from the parameters allowed."""
    streams: Positive = 16
    """The text is cut into so many streams, read side by side."""
    window: Positive = 32
    """Tokens of a stream per optimizer step; no gradient flows further back, the state does."""
    dropout: Probability = 0.2
    """Of embeddings and outputs."""
    lr: PositiveFloat = 0.01
    """AdamW's largest learning rate; it falls to a tenth along a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    max_epochs: Positive = 6
    """Epochs; the best one counts."""


class AwdLstmSettings(Section):
    """The regularised LSTM of Merity et al. 2017: weight drop, locked dropouts, averaged weights."""

    path: ClassVar[str] = "baselines.awd_lstm"

    layers: Depth = 1
    """Layers, all as wide as the embedding; the width follows from the parameters allowed."""
    streams: Positive = 16
    """The text is cut into so many streams, read side by side."""
    window: Positive = 32
    """Tokens of a stream per optimizer step, on average. Lengths vary, and with them the learning rate; one
    in twenty is about half as long."""
    word_dropout: Probability = 0.05
    """Of whole words of the embedding, all along a window."""
    input_dropout: Probability = 0.15
    """Of what the first layer reads; like the other two the same elements all along a window."""
    hidden_dropout: Probability = 0.15
    """Of what one layer gives to the next."""
    output_dropout: Probability = 0.25
    """Of what the softmax reads."""
    weight_dropout: Probability = 0.2
    """Of the matrices from state to state, one draw for a window."""
    activation: NonNegativeFloat = 0.1
    """Weight of activation regularisation: the mean square of what the softmax reads."""
    temporal_activation: NonNegativeFloat = 0.1
    """Weight of temporal activation regularisation: the mean square of what the last layer's output changes
    from token to token."""
    average_after: Positive = 3
    """Weights are averaged over all further steps once an epoch validates worse than the best one that so
    many epochs or more were behind it."""
    lr: PositiveFloat = 0.01
    """AdamW's largest learning rate; it falls to a tenth along a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    max_epochs: Positive = 14
    """Epochs; the best one counts."""


class TransformerSettings(Section):
    """A small transformer of today: rotary positions, RMSNorm before each part and of queries and keys,
    squared ReLU, no biases."""

    path: ClassVar[str] = "baselines.transformer"

    layers: Depth = 2
    """Layers; their width follows from the parameters allowed."""
    heads: Annotated[int, Field(gt=0, le=1 << 10)] = 4
    """Attention heads."""
    window: Annotated[int, Field(ge=2)] = 64
    """Tokens it sees at once; in scoring every token but the first ones sees at least half of that."""
    batch_windows: Positive = 8
    """Windows per optimizer step."""
    dropout: Probability = 0.1
    """Of embeddings, of what every part adds, and of what the softmax reads."""
    lr: PositiveFloat = 0.01
    """AdamW's largest learning rate; it rises for a tenth of the steps and falls along a cosine."""
    weight_decay: NonNegativeFloat = 0.1
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    max_epochs: Positive = 8
    """Epochs; the best one counts."""


class Gpt2Settings(TransformerSettings):
    """The GPT-2 baseline: transformers' own class, small; its width follows from the parameters allowed."""

    path: ClassVar[str] = "baselines.gpt2"

    dropout: Probability = 0.1
    """Of embeddings, attention and residuals."""
    lr: PositiveFloat = 0.003
    """AdamW's largest learning rate; it rises for a tenth of the steps and falls along a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decay."""
    max_epochs: Positive = 6
    """Epochs; the best one counts."""


class BaselineSettings(Section):
    """What people would use instead, and the control of phase 1, on the same tokens in the same run."""

    path: ClassVar[str] = "baselines"

    models: tuple[Annotated[str, OneOf("tandem.baselines:BASELINES")], ...] = ()
    """Which ones: `kneser-ney` (interpolated, modified), `lstm`, `awd-lstm`, `gpt2`, `transformer`,
    `untrained` (a ContextBlock with random weights), `bigram`, `unigram`. `tandem experiment --baselines`
    runs all."""
    order: Annotated[int, Field(ge=2, le=8)] = 5
    """Kneser-Ney: tokens of the longest n-grams."""
    max_parameters: Positive | None = None
    """Parameters that each network may have. All of them are trained. None: as many as the smallest
    of the `configurations` has in all."""
    untrained: tuple[tuple[Depth, Depth], ...] | None = None
    """Configurations of the control without phase 1, as pairs of depths; none: the first of the
    `configurations`."""
    seconds: PositiveFloat | None = None
    """Seconds that the training of each network takes, scores between its epochs included. Its learning rate
    falls to its end over them, whatever its `max_epochs`. Results then depend on the machine; none: epochs.
    The score at the end comes on top."""
    learning_rates: tuple[PositiveFloat, ...] = ()
    """Each network is trained with every one of these, on its whole schedule. Then it is trained again with
    the one that validates best, and the seconds of the search count apart. Empty: its own `lr` alone."""
    lstm: LstmSettings = LstmSettings()
    awd_lstm: AwdLstmSettings = AwdLstmSettings()
    gpt2: Gpt2Settings = Gpt2Settings()
    transformer: TransformerSettings = TransformerSettings()


class SlurmSettings(Section):
    """What every worker's job asks of Slurm; jobs are submitted as one array, through submitit."""

    path: ClassVar[str] = "slurm"
    changes_results: ClassVar[bool] = False

    partition: str | None = None
    """Partition of the jobs; none: the cluster's default."""
    time_limit_min: Positive = 240
    """Minutes that a job may take; give it time for several runs, as another worker makes anew what it has
    begun by then."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs per worker, one of which it uses."""
    cpus_per_task: Positive | None = None
    """CPUs per worker, and its threads where `threads` names none; none: the cluster's default."""
    memory_gb: PositiveFloat | None = None
    """Memory per worker, in GB; none: the cluster's default."""
    setup: tuple[str, ...] = ()
    """Shell commands that a job begins with, such as `module load cuda`."""
    parameters: tuple[Annotated[str, Field(pattern=OPTION)], ...] = ()
    """Any other options of sbatch, as NAME=VALUE or NAME, such as `account=mine qos=low exclusive`."""


class RaySettings(Section):
    """What every worker asks of Ray."""

    path: ClassVar[str] = "ray"
    changes_results: ClassVar[bool] = False

    num_cpus: PositiveFloat = 1.0
    """CPUs per worker, and its threads where `threads` names none."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs per worker, one of which it uses; a part of one lets workers share it. Ray hides GPUs from workers
    that ask for none."""
