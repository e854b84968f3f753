"""The card of a model folder: a README.md, as Hugging Face shows it, written from the run's record."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tandem.decoding import read_text
from tandem.errors import DataError
from tandem.fingerprint import fingerprint
from tandem.folders import atomic_write
from tandem.records import RunRecord, perplexity
from tandem.shown import one_line

CARD = "README.md"
HEADER = """---
library_name: transformers
pipeline_tag: text-generation
# The owner of the model chooses its licence, and writes it here: apache-2.0, for example.
license: unknown
tags:
- tandem
- recurrent
- custom_code
---
"""
MARK = re.compile(r"\n<!-- Tandem wrote this card, (\w+)\. A card that you change stays as it is\. -->\n\Z")
"""Ends a card, with the fingerprint of what stands before."""
ROUNDED = "Its weights were rounded to 8 bits after training. The figures are those of the model before."
ROUNDED_ENSEMBLE = "Their weights were rounded to 8 bits."
INTRODUCTION = """A Tandem language model. One block folds all that was read into a vector of fixed size, and
another predicts the next token from it.
"""
USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = tokenizer("The", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0]))
```

`trust_remote_code=True` runs the model's code, which lies in this folder. With `pip install tandem-lm`, and
with this folder as the current one:

```sh
tandem evaluate . --data other.txt
tandem generate . --prompt "The"
tandem score . other.txt
```
"""
LIMITS = """## Limits

- The model continues text like its training text. It was not trained to follow instructions or to answer
  questions.
- It repeats errors and prejudices of its training text. Nothing filters what it writes.
- All that it has read is one vector of fixed size. Details of long texts are lost.
- The figures are of the validation text above, and may be worse on other text.
"""


def model_card(record: RunRecord, cell: str, others: Iterable[RunRecord] = (), int8: bool = False) -> str:
    """The card of a finished run of a Tandem model.

    cell      its recurrence, one of CELLS.
    others    finished runs of the same configuration with other seeds: then a mean and its interval stand
              beside the run's own figures.
    int8      whether the folder holds its weights rounded to 8 bits.
    """
    assert record.parameters is not None
    data, sizes = record.data, record.parameters
    precision = "" if record.environment.precision == "float32" else f", {record.environment.precision}"
    facts = {
        "Recipe": record.recipe or record.kind,
        **({"Variant": record.variant} if record.variant else {}),
        "Cell": cell,
        "Layers": f"{record.context_layers} in the ContextBlock, {record.token_layers} in the TokenBlock",
        "Sizes": f"embedding {record.embed_dim}, context {record.context_dim}",
        "Parameters": f"{sizes.total:,} ({sizes.total - sizes.embedding:,} without the embedding)",
        "Tokenizer": f"{data.tokenizer}, {data.vocab_size:,} entries, {data.tokenizer_fingerprint}",
        "Seed": str(record.seed),
        "Trained": f"{record.finished_at}, Tandem {record.environment.tandem}{precision}",
    }
    splits = (
        ("training", data.train_source, data.train_documents, data.train_tokens, data.train_bytes),
        (
            *("validation", data.validation_source),
            *(data.validation_documents, data.validation_tokens, data.validation_bytes),
        ),
    )
    sections = [
        f"# {escaped(record.run)} of {escaped(record.experiment)}\n",
        INTRODUCTION + (f"{ROUNDED}\n" if int8 else ""),
        _table(("", ""), [(f"**{name}**", escaped(text)) for name, text in facts.items()]),
        "## Text\n",
        _table(
            ("split", "source", "documents", "tokens", "bytes"),
            [(name, escaped(source), *(f"{n:,}" for n in counts)) for name, source, *counts in splits],
        ),
        f"Fingerprint of the text {data.text_fingerprint}, of the tokens {data.tokens_fingerprint}.\n",
        "## Validation\n",
        *_figures(record, [*others]),
        USE,
        LIMITS,
        "`record.json` has all figures, and `settings.yaml` what made the model.\n",
    ]
    return _sealed(sections)


def ensemble_card(members: Sequence[str], int8: bool = False) -> str:
    """The card of an ensemble of these models, by their names."""
    listed = "".join(f"- {escaped(name)}\n" for name in members)
    return _sealed(
        [
            "# An ensemble\n",
            f"{INTRODUCTION}The probabilities of {len(members)} such models are averaged:\n\n{listed}"
            + (f"\n{ROUNDED_ENSEMBLE}\n" if int8 else ""),
            USE,
            LIMITS,
        ]
    )


def write_card(folder: Path, card: str) -> None:
    """Put a card into a folder, unless it is there, or a README.md of somebody else is."""
    path = folder / CARD
    if not has_foreign_card(folder) and not (path.exists() and path.read_bytes() == card.encode()):
        with atomic_write(path) as draft:
            draft.write_text(card, "utf-8", newline="\n")


def has_foreign_card(folder: Path) -> bool:
    """Whether a README.md is there that Tandem did not write, or that was changed since."""
    path = folder / CARD
    if not path.exists() and not path.is_symlink():
        return False
    try:
        text = read_text(path)
    except (OSError, DataError):
        return True
    found = MARK.search(text)
    return found is None or found[1] != _seal(text[: found.start()])


def escaped(text: object) -> str:
    """Text of others for one line of Markdown: nothing of it is markup, a link or a mention."""
    line = one_line(" ".join(str(text).split()))
    return re.sub(r"([\\`*_\[\]()<>&#~$|!:@]|(?<=[wW])\.)", r"\\\1", line)


def _sealed(sections: Iterable[str]) -> str:
    """A card of these sections, which says that Tandem wrote it."""
    body = HEADER + "\n" + "\n".join(sections)
    mark = f"Tandem wrote this card, {_seal(body)}. A card that you change stays as it is."
    return f"{body}\n<!-- {mark} -->\n"


def _seal(body: str) -> str:
    return fingerprint("model card", body)


def _figures(record: RunRecord, others: Sequence[RunRecord]) -> list[str]:
    """The validation figures of a run, and their mean over all seeds."""
    assert record.validation is not None
    own = record.validation
    runs = [record, *others]
    nll = _interval([run.validation.nll_nats for run in runs if run.validation])
    bits = _interval([run.validation.bits_per_byte for run in runs if run.validation])
    spread = None if nll is None else tuple(map(perplexity, nll))
    rows = [
        ("perplexity (of a token)", f"{own.perplexity:,.2f}", _between(spread, 2)),
        ("bits per byte", f"{own.bits_per_byte:.4f}", _between(bits, 4)),
        ("nats per token", f"{own.nll_nats:.4f}", _between(nll, 4)),
        ("accuracy", f"{100 * own.accuracy:.2f}%", ""),
    ]
    if nll is None:
        table = _table(("figure", "value"), [row[:2] for row in rows])
        said = f"Of {own.tokens:,} scored tokens, with one seed."
    else:
        table = _table(("figure", "value", f"mean of {len(runs)} seeds, 95% interval"), rows)
        said = (
            f"Of {own.tokens:,} scored tokens. The intervals are Student's, over seeds. That of the\n"
            "perplexity is the exponential of the one in nats."
        )
    return [table, said + " Perplexities compare between models of the same tokenizer alone.\n"]


def _interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean of figures of several seeds and the ends of its 95% interval; none where there is none."""
    count = len(values)
    if count < 2 or not all(map(math.isfinite, values)):
        return None
    from scipy import special

    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(special.stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)
    return mean, mean - half, mean + half


def _between(spread: Sequence[float] | None, digits: int) -> str:
    if spread is None:
        return ""
    mean, low, high = (f"{value:,.{digits}f}" for value in spread)
    return f"{mean} ({low} to {high})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
