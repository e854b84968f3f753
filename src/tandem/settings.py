"""Every setting of Tandem: its type, default, unit and meaning. Nothing else decides a behaviour.

A preset is a YAML file of these settings; the command line overrides single ones (`--phase2.lr 0.002`).
This module imports neither torch nor transformers, so that `--help` answers at once.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tandem.errors import SettingsError
from tandem.fingerprint import fingerprint

Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, errors as one sentence."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    path: ClassVar[str] = ""
    """Where this section stands in the whole, for error messages; the whole itself is ''."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():  # `--help` wraps lines itself
            field.description = " ".join((field.description or "").split())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_sentence(error, type(self))) from None


class DataSettings(Section):
    """Text: where it comes from and how it is cut into documents and splits."""

    path: ClassVar[str] = "data"

    train: str = "python-docs"
    """Training text: `python-docs` (the embedded default), a .txt, .jsonl or .parquet file (each may be
    gzipped), a directory or glob of them, or `hf:NAME[:SPLIT]` (SPLIT may be a slice: `train[:2000]`)."""
    validation: str | None = None
    """Validation text, same forms; none: a part of the training documents is set aside."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the training text (in bytes, by whole documents) set aside when `validation` is not given."""
    split_seed: int = 0
    """Which documents are set aside, and which ones `max_train_bytes` keeps."""
    max_train_bytes: Positive | None = None
    """Use about this much training text (UTF-8 bytes, whole documents drawn at random); none: all."""
    txt_documents: str = "file"
    """What a document is in .txt files: `file`, `blank-line` (paragraphs), or `start:REGEX` (a document
    starts at every line that matches)."""
    separator: str = "eos"
    """What stands between documents: `eos` (the end-of-text token before each) or a text (may be empty)."""
    validation_separator: str | None = None
    """The same for validation text; none: as `separator`."""
    allow_overlap: tuple[str, ...] = ()
    """Validation sources, named as in `validation`, whose documents may also occur in training."""


class TokenizerSettings(Section):
    """Tokens: the vocabulary."""

    path: ClassVar[str] = "tokenizer"

    source: str = "bpe"
    """`bpe` (a byte-level BPE trained on the training split only), a tokenizer.json file, a tokenizer
    folder, or a hub name such as `gpt2`."""
    vocab_size: Annotated[int, Field(ge=257)] = 8192
    """Entries of the trained BPE, end-of-text token included; not used with another source."""


class EmbeddingSettings(Section):
    """Token embeddings, which are also the output head."""

    path: ClassVar[str] = "embeddings"

    source: str = "spectral"
    """`spectral` (truncated SVD of the PPMI of co-occurrences in the training tokens), `random`, or the
    input embedding of a causal LM: a hub name such as `gpt2`, a model folder, or a .safetensors file."""
    trained: bool = False
    """Recipe `seed`: train the embedding (hence the head) in phase 2; contexts are then recomputed before
    every epoch. (Recipe `predictive` trains it in phase 1, and phase 2 keeps it.)"""
    window: Positive = 4
    """Spectral: co-occurrences are counted up to this many tokens apart."""
    norm: PositiveFloat = 4.0
    """Spectral and random: root mean square length of an embedding vector."""


class ModelSettings(Section):
    """Sizes of the two blocks; their depths come from `configurations`."""

    path: ClassVar[str] = "model"

    embed_dim: Annotated[int, Field(ge=2)] = 256
    """E, the length of an embedding vector."""
    context_dim: Annotated[int, Field(ge=2)] = 160
    """C, the length of the context vector (at least 2: a LayerNorm of one element is constant)."""
    cell: Literal["residual", "gated"] = "residual"
    """Layers of the ContextBlock: `residual` (the original's), or `gated` (a gated linear recurrence, whose
    contexts need no sequential scan; the layers share `context_dim` evenly)."""
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
    segment_length: Positive = 512
    """Tokens of a segment, burn-in not counted."""
    burn_in: Positive | Literal["auto"] = "auto"
    """Tokens read before each segment to reach its context; `auto` measures how fast the block forgets."""
    tolerance: PositiveFloat = 1e-5
    """Largest allowed difference (absolute, per element) between scan and loop; more is an error."""
    check_tokens: Positive = 2048
    """Tokens on which the scan is compared with the loop, each time; never fewer than four segments."""


class Phase1Settings(Section):
    """Phase 1 of recipe `seed`: the ContextBlock learns contexts that spread out (OACD), by Jacobi sweeps."""

    path: ClassVar[str] = "phase1"

    max_iterations: Annotated[int, Field(ge=2)] = 60
    """At most this many iterations; the random start counts as the first."""
    batch_positions: Annotated[int, Field(ge=2)] = 5000
    """Consecutive positions of one OACD batch; gradients are averaged over all batches of a sweep."""
    max_tokens: Positive | None = None
    """Sweep over the first this many training tokens only; none: all."""
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
    rank_positions: Positive = 10_000
    """Effective rank is computed on at most this many positions."""


Probability = Annotated[float, Field(ge=0, lt=1)]


class PredictionSettings(Section):
    """Phase 1 of recipe `predictive`: ContextBlock and embedding learn to predict the next token, through
    token layers of its own."""

    path: ClassVar[str] = "prediction"

    max_epochs: Positive = 8
    """Passes over the training tokens; all are made, as the learning rate falls to zero over them."""
    head_layers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2)
    """Depths of the TokenBlocks through which it predicts, side by side, all with the same weight."""
    streams: Positive = 64
    """The text is cut into so many streams, read side by side."""
    window: Positive = 32
    """Tokens of a stream per optimizer step; no gradient flows further back, the contexts do."""
    lr: PositiveFloat = 0.003
    """AdamW's largest learning rate; it rises over the first tenth of the steps (100 at most) and
    falls linearly to zero."""
    weight_decay: NonNegativeFloat = 1.0
    """AdamW's decay of matrices, the embedding included."""
    dropout: Probability = 0.5
    """Of contexts where they are read, and of what the head reads."""
    embed_dropout: Probability = 0.3
    """Of token embeddings where they are read."""
    negatives: Positive | None = 1024
    """Tokens drawn for the softmax of a step beside its own targets, corrected for their chance to be in it;
    none: the whole vocabulary. Scores are always of the whole vocabulary."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""


class Phase2Settings(Section):
    """Phase 2: the TokenBlock learns to predict the next token from frozen contexts."""

    path: ClassVar[str] = "phase2"

    start: Literal["random", "phase1"] = "random"
    """Initial weights: drawn from the seed, or (recipe `predictive`) those of phase 1's token layers of the
    same depth, else of the nearest: the last layers are taken over, others start by changing nothing."""

    max_epochs: Positive = 20
    """At most this many passes over the training tokens."""
    patience: Positive = 1
    """Stop after this many epochs in a row without a better validation loss; the best epoch counts."""
    batch_positions: Positive = 4096
    """Positions of one optimizer step."""
    shuffle: bool = False
    """Draw the positions of a batch at random in every epoch; otherwise consecutive ones, in order."""
    lr: PositiveFloat = 0.001
    """Adam's (with a decay AdamW's) largest learning rate."""
    schedule: Literal["constant", "linear"] = "constant"
    """Of the learning rate: `constant`, or `linear`: a rise over the first tenth of the steps (50 at most)
    and a fall to zero over `max_epochs`."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decay of matrices."""
    dropout: Probability = 0.0
    """Of contexts where they are read, and of what the head reads."""
    embed_dropout: Probability = 0.0
    """Of token embeddings where the TokenBlock reads them."""
    negatives: Positive | None = None
    """As `prediction.negatives`; none: the whole vocabulary."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    chunk_positions: Positive = 512
    """Positions whose logits over the whole vocabulary are held at once (memory only, not results)."""


class LstmSettings(Section):
    """The LSTM baseline: one embedding for input and output, truncated backpropagation through time."""

    path: ClassVar[str] = "baselines.lstm"

    layers: Positive = 1
    """Layers; their width follows from the parameters allowed."""
    streams: Positive = 16
    """The text is cut into so many streams, read side by side."""
    window: Positive = 32
    """Tokens of a stream per optimizer step; no gradient flows further back, the state does."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Of embeddings and outputs."""
    lr: PositiveFloat = 0.01
    """AdamW's largest learning rate; it falls to a tenth along a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    max_epochs: Positive = 6
    """Epochs; the best one counts."""


class Gpt2Settings(Section):
    """The GPT-2 baseline: transformers' own class, small; its width follows from the parameters allowed."""

    path: ClassVar[str] = "baselines.gpt2"

    layers: Positive = 2
    """Layers."""
    heads: Positive = 4
    """Attention heads."""
    window: Annotated[int, Field(ge=2)] = 64
    """Tokens it sees at once; in scoring every token but the first ones sees at least half of that."""
    batch_windows: Positive = 8
    """Windows per optimizer step."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of embeddings, attention and residuals."""
    lr: PositiveFloat = 0.003
    """AdamW's largest learning rate; it rises for a tenth of the steps and falls along a cosine."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """The gradient is clipped to this norm."""
    max_epochs: Positive = 6
    """Epochs; the best one counts."""


Baseline = Literal["kneser-ney", "lstm", "gpt2", "untrained", "bigram", "unigram"]


class BaselineSettings(Section):
    """What people would use instead, and the control of phase 1, on the same tokens in the same run."""

    path: ClassVar[str] = "baselines"

    models: tuple[Baseline, ...] = ()
    """Which ones: `kneser-ney` (interpolated, modified), `lstm`, `gpt2`, `untrained` (a ContextBlock with
    random weights), `bigram`, `unigram`. `--baselines` alone means all of them."""
    order: Annotated[int, Field(ge=2, le=8)] = 5
    """Kneser-Ney: tokens of the longest n-grams."""
    max_parameters: Positive | None = None
    """Parameters that the LSTM and the GPT-2 may have, all of which are trained; none: as many as the
    smallest of the `configurations` has in all."""
    untrained: tuple[tuple[Positive, Positive], ...] | None = None
    """Configurations of the control without phase 1, as pairs of depths; none: the first of the
    `configurations`."""
    lstm: LstmSettings = LstmSettings()
    gpt2: Gpt2Settings = Gpt2Settings()

    def fingerprint(self, kind: str, allowed: int) -> str | None:
        """Of what one baseline's result depends on, beside text and tokens; none where that is nothing.

        `allowed` is the number of parameters that a network may have.
        """
        own: dict[str, dict[str, Any]] = {
            "kneser-ney": {"order": self.order},
            "lstm": {"max_parameters": allowed, **self.lstm.model_dump(mode="json")},
            "gpt2": {"max_parameters": allowed, **self.gpt2.model_dump(mode="json")},
        }
        return fingerprint("baseline", kind, own[kind]) if kind in own else None


Recipe = Literal["seed", "predictive"]
VARIED = ("recipe", "embeddings", "model", "contexts", "phase1", "prediction", "phase2")
"""What a variant may differ in; text and tokens are the same for all."""


@dataclass(frozen=True)
class Configuration:
    """Depths of the two blocks: `C<context_layers>T<token_layers>`."""

    context_layers: int = 1
    token_layers: int = 1

    @property
    def name(self) -> str:
        """The customary name, such as C2T1."""
        return f"C{self.context_layers}T{self.token_layers}"


class Settings(Section):
    """An experiment: data, sizes, both phases, which configurations, which seeds."""

    name: Annotated[str, Field(pattern=r"^[\w][\w.\-]*$")] = "experiment"
    """Name of the experiment (letters, digits, `_`, `-`, `.`); part of its default run directory."""
    description: str = ""
    """One line about it."""
    configurations: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)] = (
        (1, 1),
        (2, 1),
        (1, 2),
        (2, 2),
    )
    """The configurations to compare, as pairs of context_layers and token_layers."""
    recipe: Recipe = "seed"
    """How the blocks are trained: `seed` (the original: phase 1 spreads contexts, `phase1`) or `predictive`
    (phase 1 predicts, `prediction`). Files without this setting mean `seed`."""
    variants: dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w.]*$")], dict[str, Any]] = {}
    """Settings to run beside each other on the same text: by name, what differs from all the others, such as
    {seed: {recipe: seed, model: {context_dim: 120}}, predictive: {recipe: predictive}}. Every configuration
    is then trained with every variant and seed; none: once, as the settings are."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds; every configuration is trained once with each."""
    device: str = "auto"
    """`auto` (CUDA, else MPS, else CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """CPU threads; none: as torch chooses."""
    output: Annotated[str, Field(min_length=1)] | None = None
    """Run directory; none: `runs/NAME-FINGERPRINT`, so that the same command continues the same run."""
    save_models: bool = True
    """Keep the model of every run under RUN_DIR/models."""
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    model: ModelSettings = ModelSettings()
    contexts: ContextSettings = ContextSettings()
    phase1: Phase1Settings = Phase1Settings()
    prediction: PredictionSettings = PredictionSettings()
    phase2: Phase2Settings = Phase2Settings()
    baselines: BaselineSettings = BaselineSettings()

    @model_validator(mode="after")
    def _no_repeats(self) -> "Settings":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds repeat; name each seed once")
        if len(set(self.configurations)) < len(self.configurations):
            raise ValueError("configurations repeat; name each one once")
        if len(set(self.baselines.models)) < len(self.baselines.models):
            raise ValueError("baselines.models repeat; name each one once")
        if len(set(self.baselines.untrained or ())) < len(self.baselines.untrained or ()):
            raise ValueError("baselines.untrained repeat; name each configuration once")
        for name in self.variants:
            self.with_variant(name)
        return self

    def with_variant(self, name: str | None) -> "Settings":
        """These settings as one of the `variants` has them; as they are for None.

        Raises SettingsError for a variant that differs in what all must share, or is not possible.
        """
        if name is None:
            return self
        # Arguments of a command are settings with fields of their own, which no variant has.
        values = self.model_dump(include=set(Settings.model_fields) - {"variants"})
        for key, value in self.variants[name].items():
            if key not in VARIED:
                raise SettingsError(
                    f"setting variants.{name}.{key} is not possible: variants may differ in "
                    f"{', '.join(VARIED)}"
                )
            if isinstance(value, Mapping) and isinstance(values[key], dict):
                value = {**values[key], **value}
            values[key] = value
        try:
            return Settings(**values)
        except SettingsError as error:
            raise SettingsError(f"variants.{name}: {error}") from None

    @property
    def variant_names(self) -> tuple[str | None, ...]:
        """Names of the variants to run; None alone where there is only one way to train."""
        return tuple(self.variants) or (None,)

    @property
    def grid(self) -> tuple[Configuration, ...]:
        """The configurations to compare."""
        return tuple(Configuration(*depths) for depths in self.configurations)

    @property
    def untrained_grid(self) -> tuple[Configuration, ...]:
        """The configurations to train without phase 1, as a control."""
        if "untrained" not in self.baselines.models:
            return ()
        depths = self.baselines.untrained
        return self.grid[:1] if depths is None else tuple(Configuration(*pair) for pair in depths)

    def fingerprint(self) -> str:
        """Of everything that a single run's result depends on: not its name, place, seeds or siblings."""
        return settings_fingerprint(self.model_dump(mode="json"))


def chosen_variant(settings: Settings, name: str | None) -> Settings:
    """One variant by name, or with None the settings themselves, without variants.

    Raises SettingsError for a name that is not among them.
    """
    if name is None:
        return settings.model_copy(update={"variants": {}})
    if name not in settings.variants:
        there = ", ".join(settings.variants) or "none"
        raise SettingsError(f"there is no variant '{name}' in these settings; there are: {there}")
    return settings.with_variant(name)


def settings_fingerprint(values: Mapping[str, Any]) -> str:
    """The fingerprint of settings as they were written down, whatever version of Tandem wrote them."""
    apart = {
        *("name", "description", "output", "save_models", "device", "threads"),
        *("seeds", "configurations", "baselines", "variants"),
    }
    return fingerprint("settings", {name: value for name, value in values.items() if name not in apart})


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    folder = resources.files("tandem") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_settings(preset_or_file: str) -> Settings:
    """Settings of a shipped preset, by name, or of a YAML file.

    Raises SettingsError for an unknown preset, a file that is not YAML, an unknown key (with the nearest
    known one) or an impossible value.
    """
    path = Path(preset_or_file)
    if preset_or_file in preset_names():
        text = (resources.files("tandem") / "presets" / f"{preset_or_file}.yaml").read_text("utf-8")
    elif path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            raise SettingsError(
                f"there is no settings file {path}; `tandem config` lists the presets"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the settings file {path}: {error}") from None
    else:
        near = difflib.get_close_matches(preset_or_file, preset_names(), n=1)
        raise SettingsError(
            f"there is no preset or settings file '{preset_or_file}'"
            + (f"; did you mean '{near[0]}'?" if near else "")
            + f" (presets: {', '.join(preset_names())})"
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise SettingsError(
            f"{preset_or_file}{line} is not valid YAML; compare it with `tandem config`"
        ) from None
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(f"{preset_or_file} must hold settings as `key: value` lines; see `tandem config`")
    values.setdefault("name", path.stem)
    try:
        return Settings(**values)
    except SettingsError as error:
        raise SettingsError(f"{preset_or_file}: {error}") from None


def dump_settings(settings: Settings) -> str:
    """The settings as YAML that `load_settings` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def known_keys(section: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings: `seeds`, `data.train`, `phase2.lr`, …"""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from known_keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def nearest_key(key: str) -> str | None:
    """The known dotted name nearest to `key`, if any is near."""
    keys = list(known_keys())
    if near := difflib.get_close_matches(key, keys, n=1, cutoff=0.6):
        return near[0]
    last = key.rsplit(".", 1)[-1]
    by_last = {name.rsplit(".", 1)[-1]: name for name in keys}
    near = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)
    return by_last[near[0]] if near else None


def _sentence(error: ValidationError, section: type[Section]) -> str:
    """The first problem of a pydantic error, as one sentence with the setting's dotted name."""
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"] if not _is_union_branch(part)]
    name = ".".join(([section.path] if section.path else []) + parts)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        near = nearest_key(name)
        hint = f"; did you mean '{near}'?" if near else "; `tandem config` lists all settings"
        return f"there is no setting '{name}'{hint}{more}"
    if first["type"] == "too_short" and not first["input"]:
        return f"setting {name} is empty; give at least one value{more}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not name:
        return f"{message}{more}"
    shown = first["input"] if not isinstance(first["input"], Mapping) else "a mapping"
    return f"setting {name} = {shown!r} is not possible: {message}{more}"


def _is_union_branch(part: Any) -> bool:
    """Pydantic puts the branch of a union (`int`, `literal[...]`, `constrained-int`) into the location."""
    return isinstance(part, str) and (
        part in {"int", "str", "float", "none", "constrained-int"}
        or part.startswith(("literal[", "function-"))
    )
