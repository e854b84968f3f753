"""The runs of an experiment, planned: which model with which seed, in which order."""

from dataclasses import dataclass
from typing import Literal

from tandem.records import BaselineKind
from tandem.settings import Configuration, Settings


@dataclass(frozen=True)
class Cell:
    """One run to be made.

    configuration    of Tandem models, `untrained` ones included; None for other baselines
    seed             None where nothing is drawn at random
    label            what runs that differ in their seed only have in common: C2T1, predictive-C2T1, LSTM
    variant          of Tandem models: the variant of the settings, by name; None where there are none
    """

    kind: Literal["tandem"] | BaselineKind
    configuration: Configuration | None
    seed: int | None
    label: str
    variant: str | None = None

    @property
    def name(self) -> str:
        """Such as C2T1-seed0 or KN-5."""
        return self.label if self.seed is None else f"{self.label}-seed{self.seed}"


def tandem_cell(configuration: Configuration, seed: int, variant: str | None = None) -> Cell:
    """The run of one configuration."""
    return Cell("tandem", configuration, seed, label_of(configuration, variant), variant)


def label_of(configuration: Configuration, variant: str | None) -> str:
    """What the runs of one configuration and variant are called, less their seed."""
    return configuration.name if variant is None else f"{variant}-{configuration.name}"


def plan(settings: Settings) -> list[Cell]:
    """All runs in order: what needs no seed first, then seed after seed, so that a part is balanced too."""
    wanted = settings.baselines.models
    names: dict[BaselineKind, str] = {
        "unigram": "unigram",
        "bigram": "bigram",
        "kneser-ney": f"KN-{settings.baselines.order}",
        "lstm": "LSTM",
        "gpt2": "GPT-2",
    }
    ngrams: tuple[BaselineKind, ...] = ("unigram", "bigram", "kneser-ney")
    networks: tuple[BaselineKind, ...] = ("lstm", "gpt2")
    cells = [Cell(kind, None, None, names[kind]) for kind in ngrams if kind in wanted]
    for seed in settings.seeds:
        for variant in settings.variant_names:
            cells += _of_variant(settings, variant, seed)
        cells += [Cell(kind, None, seed, names[kind]) for kind in networks if kind in wanted]
    return cells


def claims(cells: list[Cell]) -> dict[str, list[Cell]]:
    """Runs by what a worker claims at once: those that share their contexts together, any other alone."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        claim = cell.name
        if cell.configuration is not None:
            parts = (cell.variant, cell.kind, f"C{cell.configuration.context_layers}", f"seed{cell.seed}")
            claim = "-".join(part for part in parts if part is not None)
        groups.setdefault(claim, []).append(cell)
    return groups


def _of_variant(settings: Settings, variant: str | None, seed: int) -> list[Cell]:
    """Every configuration with one variant and seed, those that share a phase 1 side by side."""
    depths = dict.fromkeys(configuration.context_layers for configuration in settings.grid)
    return [
        tandem_cell(configuration, seed, variant)
        for layers in depths
        for configuration in settings.grid
        if configuration.context_layers == layers
    ] + [
        Cell("untrained", configuration, seed, f"{label_of(configuration, variant)}-untrained", variant)
        for configuration in settings.untrained_grid
    ]
