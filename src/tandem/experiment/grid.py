"""The runs of an experiment, planned: which model with which seed, in which order."""

from dataclasses import dataclass

from tandem.baselines import BASELINES
from tandem.settings import Configuration, Settings


@dataclass(frozen=True)
class RunSpec:
    """One run to be made.

    kind             `tandem`, or a baseline's.
    configuration    of Tandem models, controls included; None for other baselines.
    seed             None where nothing is drawn at random.
    label            what runs that differ in their seed only have in common: C2T1, predictive-C2T1, LSTM.
    variant          of Tandem models: the variant of the settings, by name; None where there are none.
    """

    kind: str
    configuration: Configuration | None
    seed: int | None
    label: str
    variant: str | None = None

    @property
    def name(self) -> str:
        """Such as C2T1-seed0 or KN-5."""
        return self.label if self.seed is None else f"{self.label}-seed{self.seed}"


def tandem_run(
    configuration: Configuration, seed: int, variant: str | None = None, kind: str = "tandem"
) -> RunSpec:
    """The run of one configuration, or of a control of this kind."""
    return RunSpec(kind, configuration, seed, label_of(configuration, variant, kind), variant)


def label_of(configuration: Configuration, variant: str | None, kind: str = "tandem") -> str:
    """What the runs of one configuration and variant are called, less their seed."""
    parts = (variant, configuration.name, None if kind == "tandem" else kind)
    return "-".join(part for part in parts if part is not None)


def plan(settings: Settings) -> list[RunSpec]:
    """All runs in order: what needs no seed first, then seed after seed, so that a part is balanced too.

    Configurations that share a phase 1 stand side by side, in the order of their depths in the grid.
    """
    wanted = {kind: one for kind, one in BASELINES.items() if kind in settings.baselines.models}
    controls = {kind: one.configurations(settings) for kind, one in wanted.items()}
    others = {kind: one for kind, one in wanted.items() if controls[kind] is None}
    depths = list(dict.fromkeys(configuration.context_layers for configuration in settings.grid))
    grid = sorted(settings.grid, key=lambda configuration: depths.index(configuration.context_layers))
    runs = [
        RunSpec(kind, None, None, one.label(settings))
        for kind, one in reversed(others.items())  # those that take least stand last
        if not one.seeded
    ]
    for seed in settings.seeds:
        for variant in settings.variant_names:
            runs += [tandem_run(configuration, seed, variant) for configuration in grid]
            runs += [tandem_run(c, seed, variant, kind) for kind in controls for c in controls[kind] or ()]
        runs += [RunSpec(kind, None, seed, one.label(settings)) for kind, one in others.items() if one.seeded]
    return runs


def claims(runs: list[RunSpec]) -> dict[str, list[RunSpec]]:
    """Runs by what a worker claims at once: those that share their contexts together, any other alone."""
    groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        claim = run.name
        if run.configuration is not None:
            variant = "" if run.variant is None else f"{run.variant}-"
            claim = f"{variant}{run.kind}-C{run.configuration.context_layers}-seed{run.seed}"
        groups.setdefault(claim, []).append(run)
    return groups
