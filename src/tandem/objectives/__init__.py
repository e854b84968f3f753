"""Objectives of phase 1, one for each recipe: a file, here or in any package, and a line in OBJECTIVES."""

from tandem.objectives.adapted import Adaptation
from tandem.objectives.base import Objective, Phase1Inputs
from tandem.objectives.original import Dispersion
from tandem.objectives.predictive import Prediction

OBJECTIVES: dict[str, Objective] = {
    "original": Dispersion(),
    "predictive": Prediction(),
    "adapted": Adaptation(),
}
"""By the setting `recipe`; importing this needs no torch."""

__all__ = ["OBJECTIVES", "Objective", "Phase1Inputs"]
