"""The card of a model folder: what it says, whose text it shows as text, and whose README.md it leaves."""

import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from report_records import make_record

from tandem.experiment.card import CARD, escaped, has_foreign_card, model_card, write_card
from tandem.records import RunRecord

TRICKS = "<b>x</b> [a](b) `c` | *d* _e_ #f & ~~g~~ $h$ ![i](j) @k https://l.m www.n.o\n---\n\x1b[1m\udc80"


def renamed(record: RunRecord, **data: str) -> RunRecord:
    return record.model_copy(update={"data": record.data.model_copy(update=data)})


def test_a_card_says_what_the_record_says() -> None:
    record = make_record(seed=1)
    card = model_card(record, "gated")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "transformers"
    assert header["license"] == "unknown"
    assert "# The owner of the model chooses its licence" in card
    assert record.validation is not None
    for fact in (
        *(f"{record.validation.perplexity:,.2f}", f"{record.validation.bits_per_byte:.4f}"),
        *("C1T1-seed1", "original", "gated", "2,403,563", record.data.text_fingerprint, "c0ffee12"),
        *("trust_remote_code=True", "tandem evaluate .", "## Limits", "with one seed"),
    ):
        assert fact in card, fact
    assert "8 bits" not in card
    assert "rounded to 8 bits" in model_card(record, "gated", int8=True)


def test_seeds_together_have_an_interval() -> None:
    records = [make_record(seed=seed) for seed in (0, 1, 2)]
    nll = [record.validation.nll_nats for record in records if record.validation]
    card = model_card(records[0], "gated", records[1:])
    assert "mean of 3 seeds, 95% interval" in card
    mean, low, high = map(float, re.findall(r"nats per token \| \S+ \| (\S+) \((\S+) to (\S+)\)", card)[0])
    deviation = (sum((one - sum(nll) / 3) ** 2 for one in nll) / 2) ** 0.5
    assert mean == pytest.approx(sum(nll) / 3, abs=1e-4)
    assert (high - low) / 2 == pytest.approx(4.3027 * deviation / 3**0.5, abs=1e-4)


def test_text_of_others_stays_text() -> None:
    record = renamed(make_record(), train_source=TRICKS, tokenizer=TRICKS)
    record = record.model_copy(update={"experiment": TRICKS})
    html = [MarkdownIt("gfm-like", {"linkify": False}).render(model_card(make_record(), "gated"))]
    html.append(MarkdownIt("gfm-like", {"linkify": False}).render(model_card(record, "gated")))
    tags = [re.findall(r"<[^!>][^>]*>", page) for page in html]
    assert tags[0] == tags[1]
    assert "&lt;b&gt;x&lt;/b&gt; [a](b) `c` | *d*" in html[1]
    assert not re.search(r"https?://l|www\.n|\\x1b\[1m$", escaped(TRICKS))


def test_only_a_card_that_nobody_changed_is_replaced(tmp_path: Path) -> None:
    old, new = model_card(make_record(seed=1), "gated"), model_card(make_record(seed=2), "gated")
    assert not has_foreign_card(tmp_path)
    write_card(tmp_path, old)
    assert not has_foreign_card(tmp_path)
    write_card(tmp_path, new)
    assert (tmp_path / CARD).read_text("utf-8") == new
    (tmp_path / CARD).write_bytes(new.replace("\n", "\r\n").encode())
    assert not has_foreign_card(tmp_path)
    changed = new.replace("license: unknown", "license: mit")
    for foreign in (changed.encode(), b"mine\n", b"", b"\xff\xfe\x00"):
        (tmp_path / CARD).write_bytes(foreign)
        assert has_foreign_card(tmp_path)
        write_card(tmp_path, old)
        assert (tmp_path / CARD).read_bytes() == foreign
    assert [path.name for path in tmp_path.iterdir()] == [CARD]
