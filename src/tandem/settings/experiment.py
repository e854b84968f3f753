"""Settings of a whole experiment: all sections, configurations, seeds and variants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tandem.errors import SettingsError
from tandem.fingerprint import fingerprint
from tandem.settings.baselines import BaselineSettings
from tandem.settings.executors import RaySettings, SlurmSettings
from tandem.settings.model import ContextSettings, ModelSettings
from tandem.settings.phases import Phase1Settings, Phase2Settings, PredictionSettings
from tandem.settings.section import NAME, VARIANT_NAME, Positive, Section, Seed
from tandem.settings.text import DataSettings, EmbeddingSettings, TokenizerSettings

Recipe = Literal["original", "predictive"]
FORMER_NAMES = {"seed": "original"}
"""What recipes and presets were called earlier, and are called now."""
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

    name: Annotated[str, Field(pattern=NAME)] = "experiment"
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
    recipe: Recipe = "original"
    """How the blocks are trained. `original`: phase 1 spreads contexts (section `phase1`), as in the original
    experiment. `predictive`: phase 1 predicts (section `prediction`)."""
    variants: dict[Annotated[str, Field(pattern=VARIANT_NAME)], dict[str, Any]] = Field(default_factory=dict)
    """Settings to compare on the same text: a name, and the settings that it changes, such as
    {original: {recipe: original, model: {context_dim: 120}}, predictive: {recipe: predictive}}. Each
    configuration is trained with each variant and seed. None: with the settings as they are."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds; every configuration is trained once with each."""
    device: str = "auto"
    """`auto` (CUDA, else MPS, else CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of products of matrices in training, the baselines' too: `auto` is bf16 on GPUs that have it, else
    float32; CPUs with matrix units for bf16 (AMX) train faster with `bfloat16`. Contexts, scores and
    generation are in float32 in any case."""
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """CPU threads (of each worker); none: as torch chooses, or an equal share for each of several workers."""
    workers: Annotated[int, Field(gt=0, le=1024)] = 1
    """Processes that share the runs of an experiment. Further ones, on any machine that sees the run
    directory, join when they are given the same command."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where the workers beside this process run: `local` (processes of this machine), `slurm` (jobs of a
    Slurm cluster), `ray` (tasks of the Ray cluster of RAY_ADDRESS, or running here, else of a new one)."""
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
    slurm: SlurmSettings = SlurmSettings()
    ray: RaySettings = RaySettings()

    @field_validator("recipe", mode="before")
    @classmethod
    def _present_name(cls, value: object) -> object:
        if isinstance(value, str) and value in FORMER_NAMES:
            raise ValueError(f"this recipe is called '{FORMER_NAMES[value]}' now")
        return value

    @model_validator(mode="after")
    def _no_repeats(self) -> "Settings":
        repeated = [
            f"{name} repeat; name each {what} once"
            for name, values, what in (
                ("seeds", self.seeds, "seed"),
                ("configurations", self.configurations, "one"),
                ("baselines.models", self.baselines.models, "one"),
                ("baselines.untrained", self.baselines.untrained or (), "configuration"),
            )
            if len(set(values)) < len(values)
        ]
        wrong = []
        for name in self.variants:
            try:
                self.with_variant(name)
            except SettingsError as error:
                wrong.append(str(error))
        if repeated or wrong:
            raise ValueError("; ".join([*repeated, *wrong]))
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
        *("name", "description", "output", "save_models", "device", "precision", "threads"),
        *("workers", "executor", "slurm", "ray"),
        *("seeds", "configurations", "baselines", "variants"),
    }
    counted = {name: value for name, value in values.items() if name not in apart}
    if isinstance(tokenizer := counted.get("tokenizer"), Mapping):
        counted["tokenizer"] = {name: value for name, value in tokenizer.items() if name != "processes"}
    return fingerprint("settings", counted)
