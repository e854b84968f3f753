"""What `tandem adapt` brings on a little text of another kind, beside training on that text alone.

    TANDEM_SHARED=… python bench/adapting.py [--base MODEL] [--corpora …] [--kilobytes 50] [--threads 2]

A model of the recipe predictive is trained on 0.8 MB of textbooks (or MODEL is taken). For each other corpus,
on KILOBYTES of it: bits per byte of its validation text by the model as it is, by the adapted one, and by a
model of the same sizes trained from scratch, with a tokenizer of its own. Seconds are those of training, with
contexts. What the adapted model needs for the textbooks' validation text shows what is forgotten.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from measuring import SMALL, made_small, print_table, run
from quality import CORPORA, TRAIN_BYTES

from tandem.experiment.adapting import adapted_settings
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.single_run import train_one
from tandem.records import RunRecord
from tandem.settings import Configuration, DataSettings, Settings, load_settings
from tandem.training.progress import Watcher

OLD, NEW = "textbooks", ("dialogue", "wikitext-2")
VOCABULARY = 2048
"""Of the tokenizer that is trained on a little text; it supports no larger one."""


def data_of(corpus: str, shared: Path, train_bytes: int) -> DataSettings:
    """So much of a corpus, with its own validation text."""
    values = {key: value for key, value in CORPORA[corpus].items() if key != "test"}
    values |= {key: str(shared / values[key]) for key in ("train", "validation")}
    return DataSettings(max_train_bytes=train_bytes, **values)


def trained(settings: Settings, configuration: Configuration, folder: Path, threads: int) -> RunRecord:
    """The record of one training."""
    return train_one(settings.model_copy(update={"threads": threads}), configuration, 0, folder, Watcher())


def from_scratch(data: DataSettings, **more: object) -> Settings:
    """The preset on a text."""
    values = load_settings("predictive").model_dump()
    return Settings(**made_small({**values, "data": data.model_dump(), **more}))


def bits_per_byte(folder: Path, data: DataSettings) -> float:
    """Of the validation text, by the model in a folder."""
    assert data.validation is not None
    return evaluate_model(folder, data.validation, txt_documents=data.txt_documents).bits_per_byte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--corpora", nargs="+", choices=NEW, default=NEW)
    parser.add_argument("--kilobytes", type=int, default=12 if SMALL else 50)
    parser.add_argument("--threads", type=int, default=1 if SMALL else 2)
    chosen = parser.parse_args()
    if "TANDEM_SHARED" not in os.environ:
        sys.exit("TANDEM_SHARED does not name a folder with the corpora; nothing was run")
    shared, threads = Path(os.environ["TANDEM_SHARED"]), chosen.threads
    old = data_of(OLD, shared, TRAIN_BYTES)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        base = chosen.base or Path(place) / "base"
        if chosen.base is None:
            trained(from_scratch(old), Configuration(2, 2), base, threads)
        before = bits_per_byte(base, old)
        for corpus in chosen.corpora:
            data = data_of(corpus, shared, 1000 * chosen.kilobytes)
            folder = Path(place) / corpus
            settings, configuration = adapted_settings(base, data)
            adapted = trained(Settings(**made_small(settings.model_dump())), configuration, folder, threads)
            scratch = from_scratch(data, tokenizer={"vocab_size": VOCABULARY})
            alone = trained(scratch, configuration, Path(place) / f"{corpus}-alone", threads)
            assert adapted.validation is not None
            assert alone.validation is not None
            rows.append(
                [
                    corpus,
                    f"{bits_per_byte(base, data):.3f}",
                    f"{adapted.validation.bits_per_byte:.3f}",
                    f"{alone.validation.bits_per_byte:.3f}",
                    f"{adapted.seconds_alone_s:.1f}",
                    f"{alone.seconds_alone_s:.1f}",
                    f"{bits_per_byte(folder, old) - before:+.3f}",
                ]
            )
    head = ("", "as it is", "adapted", "from scratch", "adapted, s", "from scratch, s", f"{OLD}, change")
    print_table(f"bits per byte, {chosen.kilobytes} kB of another text", head, rows)


if __name__ == "__main__":
    run(main)
