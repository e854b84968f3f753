"""Every setting of Tandem: its type, default, unit and meaning. Nothing else decides a behaviour.

A preset is a YAML file of these settings; the command line overrides single ones (`--phase2.lr 0.002`).
This module imports neither torch nor transformers, so that `--help` answers at once.
"""

from tandem.settings.experiment import Configuration as Configuration
from tandem.settings.experiment import Settings as Settings
from tandem.settings.experiment import add_section as add_section
from tandem.settings.experiment import chosen_variant as chosen_variant
from tandem.settings.experiment import counted_settings as counted_settings
from tandem.settings.experiment import settings_fingerprint as settings_fingerprint
from tandem.settings.files import dump_settings as dump_settings
from tandem.settings.files import load_extensions as load_extensions
from tandem.settings.files import load_settings as load_settings
from tandem.settings.files import preset_names as preset_names
from tandem.settings.files import read_yaml as read_yaml
from tandem.settings.section import Depth as Depth
from tandem.settings.section import NonNegativeFloat as NonNegativeFloat
from tandem.settings.section import OneOf as OneOf
from tandem.settings.section import Place as Place
from tandem.settings.section import Positive as Positive
from tandem.settings.section import PositiveFloat as PositiveFloat
from tandem.settings.section import Probability as Probability
from tandem.settings.section import Section as Section
from tandem.settings.section import Seed as Seed
from tandem.settings.section import check_arguments as check_arguments
from tandem.settings.section import known_keys as known_keys
from tandem.settings.section import sentence as sentence
from tandem.settings.sections import AdaptationSettings as AdaptationSettings
from tandem.settings.sections import AwdLstmSettings as AwdLstmSettings
from tandem.settings.sections import BaselineSettings as BaselineSettings
from tandem.settings.sections import ContextSettings as ContextSettings
from tandem.settings.sections import DataSettings as DataSettings
from tandem.settings.sections import EmbeddingSettings as EmbeddingSettings
from tandem.settings.sections import Gpt2Settings as Gpt2Settings
from tandem.settings.sections import LstmSettings as LstmSettings
from tandem.settings.sections import ModelSettings as ModelSettings
from tandem.settings.sections import Phase1Settings as Phase1Settings
from tandem.settings.sections import Phase2Settings as Phase2Settings
from tandem.settings.sections import PredictionSettings as PredictionSettings
from tandem.settings.sections import SlurmSettings as SlurmSettings
from tandem.settings.sections import TokenizerSettings as TokenizerSettings
from tandem.settings.sections import TransformerSettings as TransformerSettings
