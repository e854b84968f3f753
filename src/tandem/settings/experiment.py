"""Settings of a whole experiment: all sections, configurations, seeds and variants."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from tandem.errors import SettingsError
from tandem.fingerprint import fingerprint
from tandem.settings import sections
from tandem.settings.section import NAME, VARIANT_NAME, Depth, OneOf, Place, Section, Seed

VARIED = ("recipe", "embeddings", "model", "contexts", "phase1", "prediction", "adaptation", "phase2")
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
    configurations: Annotated[tuple[tuple[Depth, Depth], ...], Field(min_length=1)] = (
        (1, 1),
        (2, 1),
        (1, 2),
        (2, 2),
    )
    """The configurations to compare, as pairs of context_layers and token_layers."""
    recipe: Annotated[str, OneOf("tandem.objectives:OBJECTIVES")] = "original"
    """Names the objective of phase 1. `original`: it spreads contexts (section `phase1`), as in the original
    experiment. `predictive`: it predicts (section `prediction`). `adapted`: it was trained before, on other
    text (section `adaptation`)."""
    variants: dict[Annotated[str, Field(pattern=VARIANT_NAME)], dict[str, Any]] = Field(default_factory=dict)
    """Settings to compare on the same text: a name, and the settings that it changes. Such as: {original:
    {recipe: original, model: {context_dim: 120}}, predictive: {recipe: predictive}}. Each configuration is
    trained with each variant and seed. None: with the settings as they are."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds; every configuration is trained once with each."""
    device: str = "auto"
    """`auto` (CUDA, else MPS, else CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of products of matrices in training, the baselines' too. `auto` is bf16 on GPUs that have it, else
    float32. CPUs with matrix units for bf16 (AMX) train faster with `bfloat16`. Contexts, scores and
    generation are in float32 in any case."""
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """CPU threads (of each worker); none: as torch chooses, or an equal share for each of several workers."""
    workers: Annotated[int, Field(gt=0, le=1024)] = 1
    """Processes that share the runs of an experiment. Further ones, on any machine that sees the run
    directory, join when they are given the same command."""
    executor: Annotated[str, OneOf("tandem.experiment.executors:EXECUTORS")] = "local"
    """Where the workers beside this process run: `local` (processes of this machine), `slurm` (jobs of a
    Slurm cluster) or `ray` (tasks of a Ray cluster). That is the cluster of RAY_ADDRESS, or running here,
    else a new one."""
    output: Annotated[Place, Field(min_length=1)] | None = None
    """Run directory; none: `runs/NAME-FINGERPRINT`, so that the same command continues the same run."""
    checkpoint_every: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Seconds between two checkpoints of a training, from which the same command continues it after any stop.
    They are more where writing would take over 2% of the time. 0: one after every step."""
    save_models: bool = True
    """Keep the model of every run under RUN_DIR/models."""
    data: sections.DataSettings = sections.DataSettings()
    tokenizer: sections.TokenizerSettings = sections.TokenizerSettings()
    embeddings: sections.EmbeddingSettings = sections.EmbeddingSettings()
    model: sections.ModelSettings = sections.ModelSettings()
    contexts: sections.ContextSettings = sections.ContextSettings()
    phase1: sections.Phase1Settings = sections.Phase1Settings()
    prediction: sections.PredictionSettings = sections.PredictionSettings()
    adaptation: sections.AdaptationSettings = sections.AdaptationSettings()
    phase2: sections.Phase2Settings = sections.Phase2Settings()
    baselines: sections.BaselineSettings = sections.BaselineSettings()
    slurm: sections.SlurmSettings = sections.SlurmSettings()
    ray: sections.RaySettings = sections.RaySettings()

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
            if key not in (varied := (*VARIED, *_added_at_top())):
                raise SettingsError(
                    f"setting variants.{name}.{key} is not possible: variants may differ in "
                    f"{', '.join(varied)}"
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


_added: dict[str, type[Section]] = {}
"""What `add_section` has added, by dotted name."""


def add_section(name: str, section: type[Section]) -> None:
    """Add a section, such as "mine" or "baselines.mine", to `Settings` and its subclasses; once is enough.

    All its fields need a default. Files, options, `tandem config` and fingerprints know it from now on.
    Raises SettingsError where something else has this name.
    """
    outer, _, key = name.rpartition(".")
    owner = Settings.subsections()[outer] if outer else Settings
    if owner.subsections().get(key) is section:
        return
    if key in owner.model_fields:
        raise SettingsError(f"there is a setting '{name}' already, so no section of this name can be added")
    section.path, _added[name] = name, section
    owner.__annotations__[key] = section
    for kind in _with_subclasses(owner):
        kind.model_fields[key] = FieldInfo.from_annotated_attribute(section, section())
        kind.model_rebuild(force=True)
    if outer:  # what contains it is built, and has its default, from what it was before
        for kind in _with_subclasses(Settings):
            kind.model_fields[outer].default = owner()
            kind.model_rebuild(force=True)


def _with_subclasses(kind: type[Section]) -> Iterator[type[Section]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)


def _added_at_top() -> list[str]:
    return [name for name, section in _added.items() if "." not in name and section.changes_results]


def settings_fingerprint(values: Mapping[str, Any]) -> str:
    """The fingerprint of settings as they were written down, whatever version of Tandem wrote them."""
    return fingerprint("settings", counted_settings(values))


def counted_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings as they were written down, those that a run's result depends on.

    An added section counts where it differs from its defaults: installing a package changes no fingerprint.
    """
    apart = {
        *("name", "description", "output", "save_models", "device", "precision", "threads"),
        *("checkpoint_every", "workers", "executor", "seeds", "configurations", "baselines", "variants"),
        *(name for name, kind in Settings.subsections().items() if not kind.changes_results),
    }
    counted = {name: value for name, value in values.items() if name not in apart}
    for part, key in (("tokenizer", "processes"), ("data", "max_document_bytes")):
        if isinstance(whole := counted.get(part), Mapping):
            counted[part] = {name: value for name, value in whole.items() if name != key}
    for name, section in _added.items():
        outer, _, key = name.rpartition(".")
        around = counted.get(outer) if outer else counted
        if isinstance(around, Mapping) and around.get(key) == section().model_dump(mode="json"):
            without = {other: value for other, value in around.items() if other != key}
            counted = counted | {outer: without} if outer else without
    return counted
