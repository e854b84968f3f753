"""Every setting of Tandem: its type, default, unit and meaning. Nothing else decides a behaviour.

A preset is a YAML file of these settings; the command line overrides single ones (`--phase2.lr 0.002`).
This module imports neither torch nor transformers, so that `--help` answers at once.
"""

from tandem.settings.experiment import (
    Configuration,
    Settings,
    add_section,
    chosen_variant,
    settings_fingerprint,
)
from tandem.settings.files import dump_settings, load_extensions, load_settings, preset_names
from tandem.settings.section import (
    NonNegativeFloat,
    OneOf,
    Positive,
    PositiveFloat,
    Probability,
    Section,
    Seed,
    check_arguments,
    known_keys,
    sentence,
)
from tandem.settings.sections import (
    BaselineSettings,
    ContextSettings,
    DataSettings,
    EmbeddingSettings,
    Gpt2Settings,
    LstmSettings,
    ModelSettings,
    Phase1Settings,
    Phase2Settings,
    PredictionSettings,
    SlurmSettings,
    TokenizerSettings,
)

__all__ = [
    "BaselineSettings",
    "Configuration",
    "ContextSettings",
    "DataSettings",
    "EmbeddingSettings",
    "Gpt2Settings",
    "LstmSettings",
    "ModelSettings",
    "NonNegativeFloat",
    "OneOf",
    "Phase1Settings",
    "Phase2Settings",
    "Positive",
    "PositiveFloat",
    "PredictionSettings",
    "Probability",
    "Section",
    "Seed",
    "Settings",
    "SlurmSettings",
    "TokenizerSettings",
    "add_section",
    "check_arguments",
    "chosen_variant",
    "dump_settings",
    "known_keys",
    "load_extensions",
    "load_settings",
    "preset_names",
    "sentence",
    "settings_fingerprint",
]
