"""What `tandem adapt` brings on a little text of another kind, beside training on that text alone.

    TANDEM_SHARED=… python bench/adapting.py [--base MODEL] [--corpora …] [--kilobytes 50] [--threads 1]

A model of the recipe predictive is trained on 0.8 MB of textbooks (or MODEL is taken). For each other corpus
there are KILOBYTES of it, of which both trainings set aside some for validation. Bits per byte are of text of
that corpus which no training reads, HELD_OUT_BYTES at most: by the model as it is, by the adapted one, and by
one of the same sizes trained from scratch, with a tokenizer of its own. CPU seconds are of a whole training,
from text to model folder, but without Python's imports. The last column has what the adapted model needs more
than before for textbooks that no training reads: what is forgotten.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from measuring import SMALL, made_small, print_table, run
from quality import CORPORA, TRAIN_BYTES

from tandem.experiment.adapting import adapted_settings
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.single_run import train_one
from tandem.settings import Configuration, DataSettings, Settings, load_settings
from tandem.text.splits import split_documents
from tandem.training.progress import Watcher

OLD, NEW = "textbooks", ("dialogue", "wikitext-2")
VOCABULARY = 2048
"""Of the tokenizer that is trained on a little text; it supports no larger one."""
HELD_OUT_BYTES = 20_000 if SMALL else 200_000


def data_of(corpus: str, shared: Path, train_bytes: int) -> DataSettings:
    """So much of a corpus, with its own validation text."""
    values = {key: value for key, value in CORPORA[corpus].items() if key != "test"}
    values |= {key: str(shared / values[key]) for key in ("train", "validation")}
    return DataSettings(max_train_bytes=train_bytes, **values)


def written(documents: Iterable[str], path: Path, most_bytes: int) -> str:
    """The first documents, as many as that allows (one at least), in a file."""
    lines, size = [], 0
    for document in documents:
        size += len(document.encode())
        if lines and size > most_bytes:
            break
        lines.append(json.dumps({"text": document}) + "\n")
    path.write_text("".join(lines), "utf-8")
    return str(path)


def trained(
    settings: Settings, configuration: Configuration, folder: Path, threads: int
) -> tuple[Path, float]:
    """The folder of one training, and its CPU seconds."""
    began = time.process_time()
    train_one(settings.model_copy(update={"threads": threads}), configuration, 0, folder, Watcher())
    return folder, time.process_time() - began


def from_scratch(data: DataSettings, **more: object) -> Settings:
    """The preset on a text."""
    values = load_settings("predictive").model_dump()
    return Settings(**made_small({**values, "data": data.model_dump(), **more}))


def bits_per_byte(folder: Path, text: str) -> float:
    """Of a text, by the model in a folder."""
    return evaluate_model(folder, text).bits_per_byte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--corpora", nargs="+", choices=NEW, default=NEW)
    parser.add_argument("--kilobytes", type=int, default=12 if SMALL else 50)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    if "TANDEM_SHARED" not in os.environ:
        sys.exit("TANDEM_SHARED does not name a folder with the corpora; nothing was run")
    shared, threads = Path(os.environ["TANDEM_SHARED"]), chosen.threads
    old = data_of(OLD, shared, TRAIN_BYTES)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        base = chosen.base
        if base is None:
            base, _ = trained(from_scratch(old), Configuration(2, 2), place / "base", threads)
        old_text = written(split_documents(old).validation, place / "old.jsonl", HELD_OUT_BYTES)
        before = bits_per_byte(base, old_text)
        for corpus in chosen.corpora:
            size = 1000 * chosen.kilobytes
            documents = split_documents(data_of(corpus, shared, size))
            data = DataSettings(train=written(documents.train, place / f"{corpus}.jsonl", size))
            text = written(documents.validation, place / f"{corpus}-held-out.jsonl", HELD_OUT_BYTES)
            settings, configuration = adapted_settings(base, data)
            own = Settings(**made_small(settings.model_dump()))
            adapted, seconds = trained(own, configuration, place / corpus, threads)
            scratch = from_scratch(data, tokenizer={"vocab_size": VOCABULARY})
            alone, seconds_alone = trained(scratch, configuration, place / f"{corpus}-alone", threads)
            bits = (bits_per_byte(model, text) for model in (base, adapted, alone))
            rows.append(
                [
                    corpus,
                    *(f"{figure:.3f}" for figure in bits),
                    f"{seconds:.1f}",
                    f"{seconds_alone:.1f}",
                    f"{seconds / seconds_alone:.0%}",
                    f"{bits_per_byte(adapted, old_text) - before:+.3f}",
                ]
            )
    seconds_of = ("adapted, CPU s", "from scratch, CPU s", "share")
    head = ("", "as it is", "adapted", "from scratch", *seconds_of, f"{OLD}, change")
    print_table(f"bits per byte, {chosen.kilobytes} kB of another text", head, rows)


if __name__ == "__main__":
    run(main)
