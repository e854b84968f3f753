"""A trained model on other text: only its token layers learn it (`tandem adapt`)."""

from pathlib import Path

from tandem.folders import check_reading
from tandem.model_folder.checking import read_single_config
from tandem.model_folder.loading import model_settings
from tandem.objectives.adapted import SIZES
from tandem.settings import (
    AdaptationSettings,
    Configuration,
    DataSettings,
    EmbeddingSettings,
    ModelSettings,
    Phase2Settings,
    Settings,
    TokenizerSettings,
)

PHASE2 = Phase2Settings(
    start="phase1",
    max_epochs=3,
    patience=3,
    batch_positions=128,
    shuffle=True,
    lr=0.003,
    schedule="linear",
    weight_decay=1.0,
    dropout=0.2,
    embed_dropout=0.1,
    output_dropout=0.1,
    negatives=512,
)
"""How the token layers are trained: more epochs forget more, and on a little text overfit (LOG.md)."""


def adapted_settings(folder: Path, data: DataSettings) -> tuple[Settings, Configuration]:
    """Settings to adapt the model in `folder` to other text, with its configuration.

    Raises RunDirError for a folder that holds no model, SettingsError or DataError for one of broken files.
    """
    check_reading(folder, "model folder")
    config, place, before = read_single_config(folder), str(folder.resolve()), model_settings(folder)
    configuration = Configuration(*config.depths)
    settings = Settings(
        name=f"{folder.resolve().name}-adapted",
        description=f"{folder.resolve().name} on other text",
        configurations=(config.depths,),
        recipe="adapted",
        data=data,
        tokenizer=TokenizerSettings(source=place),
        embeddings=EmbeddingSettings(source=place),
        model=ModelSettings(**{name: getattr(config, name) for name in SIZES}),
        adaptation=AdaptationSettings(model=place),
        phase2=PHASE2,
        **({} if before is None else {"contexts": before.contexts}),
    )
    return settings, configuration
