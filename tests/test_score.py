"""`tandem score`: its figures are those of `tandem evaluate`, and nothing of a stopped run is lost."""

import gzip
import io
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import PREDICTIVE, sentences, tiny, write_jsonl
from scipy.stats import binomtest

import tandem
from tandem.cli.main import run
from tandem.errors import DataError, RunDirError, SettingsError, TandemError
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.single_run import train_one
from tandem.scoring import scorer as scorer_module
from tandem.scoring.files import Added, Counts, FileScoring, Limits
from tandem.scoring.pairs import Accuracy, score_pairs
from tandem.scoring.scorer import Scorer, State
from tandem.settings import Configuration
from tandem.text.files import read_records
from tandem.text.reading import Reading
from tandem.training.progress import Watcher

TEXTS = [*sentences(6, seed=5), "naïve 日本語  text\n\nwith  gaps ", "a", "", "  ", "word " * 300]
SILENT: Callable[[str], None] = lambda _: None  # noqa: E731


@pytest.fixture(scope="module", params=["original", "predictive"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A model of each recipe, and so of each cell."""
    return model if request.param == "predictive" else trained(tmp_path_factory.mktemp("original"), {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for all that does not depend on the cell."""
    return trained(tmp_path_factory.mktemp("model"), PREDICTIVE)


@pytest.fixture(scope="module")
def scorer(model: Path) -> Scorer:
    return tandem.load(str(model))


@pytest.fixture
def unmarked(model: Path, tmp_path: Path) -> Path:
    """The model, as if no end-of-text token began its documents."""
    folder = tmp_path / "unmarked"
    shutil.copytree(model, folder)
    settings = yaml.safe_load((folder / "settings.yaml").read_text("utf-8"))
    settings["data"]["separator"] = "\n\n"
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    return folder


def trained(place: Path, more: dict[str, Any]) -> Path:
    text = write_jsonl(place / "text.jsonl", sentences(20))
    phase2 = {**more.get("phase2", {}), "max_epochs": 1}
    train_one(tiny(text, **{**more, "phase2": phase2}), Configuration(1, 2), 0, place / "model", Watcher())
    return place / "model"


def evaluated(folder: Path, text: str, place: Path) -> list[float]:
    result = evaluate_model(folder, str(write_jsonl(place / "one.jsonl", [text])), device="cpu")
    return [result.nll_nats, result.bits_per_byte, result.perplexity, result.text_bytes]


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def scored(scorer: Scorer, output: Path | None, *sources: Path, **more: Any) -> Counts:
    own = {"text_field": None, "rejected": None, **more}
    return FileScoring(scorer, [str(path) for path in sources], output=output, **own).run(SILENT)


def test_figures_are_those_of_evaluate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of texts that are read in several parts, beside others."""
    monkeypatch.setattr(scorer_module, "BATCH_TOKENS", 128)
    texts = [TEXTS[0], TEXTS[6], TEXTS[-1]]
    for text, one in zip(texts, tandem.load(str(folder)).score(texts), strict=True):
        expected = evaluated(folder, text, tmp_path)
        assert [one.nll_nats, one.bits_per_byte, one.perplexity, one.bytes] == pytest.approx(expected, 1e-5)


def test_ever_other_texts_have_the_same_few_sizes(scorer: Scorer) -> None:
    """Memory grows where the token block reads ever other numbers of positions (LOG.md)."""
    sizes = set[int]()

    def note(_block: torch.nn.Module, read: tuple[torch.Tensor, ...]) -> None:
        sizes.add(len(read[0]))

    with scorer.model.token_block.register_forward_pre_hook(note):
        for count in range(1, 40):
            scorer.score(["word " * count] * count)
    assert sizes <= {1 << power for power in range(9)}


def test_without_an_end_of_text_token_the_first_one_is_not_scored(
    unmarked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = tandem.load(str(unmarked))
    text = TEXTS[0]
    (one,) = scorer.score([text])
    tokens, words = scorer.tokens(text), scorer.words(text)
    assert [one.nll_nats, one.bits_per_byte] == pytest.approx(evaluated(unmarked, text, tmp_path)[:2], 1e-5)
    assert one.tokens == len(tokens) - 1
    assert one.bytes == len(text.encode()) - tokens[0].end
    assert [tokens[0].nll_nats, words[0].nll_nats] == [None, None]
    assert None not in [token.nll_nats for token in tokens[1:]]
    first, *others = scorer.full_scores(text)
    assert math.isnan(first.log10)
    assert not any(math.isnan(word.log10) for word in others)
    assert scorer.score(["a"])[0].nll_nats is None
    assert run(["score", str(unmarked), str(write_jsonl(tmp_path / "a.jsonl", TEXTS[:1]))]) == 0
    assert "the first token of a document has no prediction" in capsys.readouterr().err


def test_tokens_and_words_add_up(scorer: Scorer) -> None:
    for text, one in zip(TEXTS, scorer.score(TEXTS), strict=True):
        tokens, words = scorer.tokens(text), scorer.words(text)
        assert len(tokens) == one.tokens
        assert [word.text for word in words] == text.split()
        assert all(text[part.start : part.end] == part.text for part in (*tokens, *words))
        if not one.tokens:
            continue
        assert one.nll_nats is not None
        total = one.nll_nats * one.tokens
        for parts in (tokens, words) if words else (tokens,):
            assert math.fsum(part.nll_nats or 0 for part in parts) == pytest.approx(total, abs=1e-6 * 9999)
        assert not words or sum(word.tokens for word in words) == one.tokens


def test_states_are_read_on_from(scorer: Scorer) -> None:
    """Word after word gives what KenLM's words are called with, and what the whole text gives."""
    text = "the context reads a sentence"
    whole = list(scorer.full_scores(text))
    state, logs = scorer.begin(), []
    for number, word in enumerate(text.split()):
        log10, after = scorer.base_score(state, f" {word}" if number else word)
        again, _ = scorer.base_score(state, f" {word}" if number else word)
        assert again == log10  # a state stays what it was
        logs.append(log10)
        state = after
    assert logs == pytest.approx([word.log10 for word in whole], abs=1e-5)
    (one,) = scorer.score([text])
    assert one.nll_nats is not None
    assert sum(logs) * math.log(10) == pytest.approx(-one.nll_nats * one.tokens, rel=1e-5)
    begun: State = scorer.base_score(scorer.begin(), "the context reads")[1]
    rest = list(scorer.full_scores(" a sentence", begun))
    assert [word.log10 for word in rest] == pytest.approx([word.log10 for word in whole[3:]], abs=1e-5)
    assert not any(word.oov for word in whole)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines with fields of their own."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = [
        json.dumps({"id": number, "text": text, "more": {"a": [str(number), "é"]}}, ensure_ascii=False)
        for number, text in enumerate(sentences(11, seed=3))
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_every_form_of_input_and_output(scorer: Scorer, corpus: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = rows_of(corpus)
    scored(scorer, tmp_path / "out.jsonl", corpus)
    expected = rows_of(tmp_path / "out.jsonl")
    assert [{name: row[name] for name in ("id", "text", "more")} for row in expected] == rows
    assert list(expected[0])[3:] == ["nll_nats", "tokens", "bytes", "bits_per_byte", "perplexity"]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes()))
    zstd = tmp_path / "a.jsonl.zst"
    with pyarrow.output_stream(str(zstd), compression="zstd") as file:
        file.write(corpus.read_bytes())
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "more": None} for row in rows]), table)
    for number, source in enumerate((packed, zstd, table)):
        output = tmp_path / f"out{number}.parquet"
        scored(scorer, output, source)
        for ours, theirs in zip(rows_of(output), expected, strict=True):
            assert {**ours, "more": None} == {**theirs, "more": None}
    lines = tmp_path / "a.txt"
    lines.write_text("".join(row["text"] + "\n" for row in rows) + "\n", "utf-8")
    scored(scorer, tmp_path / "lines.jsonl", lines, text_field="body")
    *found, blank = rows_of(tmp_path / "lines.jsonl")
    assert [row["body"] for row in found] == [row["text"] for row in rows]
    assert [row["nll_nats"] for row in found] == [row["nll_nats"] for row in expected]
    assert (blank["body"], blank["perplexity"]) == ("", None)


def test_a_pipe_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for packed in (False, True):
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(source, "utf-8"))
            first = b'{"text": "one"}\n'
            sink.write(gzip.compress(first) if packed else first)
            if packed:
                sink.close()
            sink.flush() if not packed else None
            records = read_records(["-"], Reading("-"), "text")
            assert next(records) == ({"text": "one"}, "standard input, line 1")
            if not packed:
                sink.write(b'{"text": "two"}\n\xff\n')
                sink.close()
                with pytest.raises(DataError, match="standard input is not UTF-8 text soon after line"):
                    list(records)
            records.close()  # type: ignore[attr-defined]


def test_endless_input_is_read_a_window_at_a_time() -> None:
    endless = itertools.count()
    parts = scorer_module.windows(endless, lambda _: 1)
    sizes = [len(window) for window in itertools.islice(parts, 3)]
    assert sizes == [scorer_module.WINDOW_DOCUMENTS] * 3
    assert next(endless) == sum(sizes)


def test_limits_keep_and_reject(scorer: Scorer, corpus: Path, tmp_path: Path) -> None:
    scored(scorer, tmp_path / "all.jsonl", corpus)
    every = rows_of(tmp_path / "all.jsonl")
    ordered = sorted(row["perplexity"] for row in every)
    cases = {
        "limits": (Limits(ordered[2], ordered[8]), lambda row: ordered[2] <= row["perplexity"] <= ordered[8]),
        "share": (Limits(keep_quantile=0.5), lambda row: row["perplexity"] <= ordered[5]),
    }
    for name, (limits, keeps) in cases.items():
        output, rejected = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-rejected.parquet"
        counts = scored(scorer, output, corpus, rejected=rejected, limits=limits)
        assert rows_of(output) == [row for row in every if keeps(row)]
        assert [row["id"] for row in rows_of(rejected)] == [row["id"] for row in every if not keeps(row)]
        assert counts.passed == len(rows_of(output))
        assert counts.documents == len(every)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".parquet"}


@torch.no_grad()
def test_a_contrast_is_the_difference_of_bits(scorer: Scorer, corpus: Path, tmp_path: Path) -> None:
    other = tandem.load(scorer._made_of[0])
    for parameter in other.model.token_block.parameters():
        parameter.mul_(0.5)
    more = {"added": Added(contrast=other), "limits": Limits(keep_quantile=0.3)}
    scored(scorer, tmp_path / "out.jsonl", corpus, rejected=tmp_path / "no.jsonl", **more)
    kept, rejected = rows_of(tmp_path / "out.jsonl"), rows_of(tmp_path / "no.jsonl")
    for row in (*kept, *rejected):
        (one,), (two,) = scorer.score([row["text"]]), other.score([row["text"]])
        assert one.bits_per_byte is not None
        assert two.bits_per_byte is not None
        assert row["contrast_bits_per_byte"] == pytest.approx(one.bits_per_byte - two.bits_per_byte, abs=1e-5)
    highest = max(row["contrast_bits_per_byte"] for row in kept)
    assert all(row["contrast_bits_per_byte"] > highest for row in rejected)


@torch.no_grad()
def test_models_on_one_context_block_read_a_text_once(
    scorer: Scorer, corpus: Path, tmp_path: Path, folder: Path
) -> None:
    first, other = tandem.load(str(folder)), tandem.load(str(folder))
    for parameter in other.model.token_block.parameters():
        parameter.mul_(0.5)
    alone = {row["text"]: other.score([row["text"]])[0].bits_per_byte for row in rows_of(corpus)}
    first.check_same_contexts(other)
    del other.model.model.context_block  # its contexts are those of the first one
    scored(first, tmp_path / "out.jsonl", corpus, added=Added(also={"chats": other}))
    for row in (rows := rows_of(tmp_path / "out.jsonl")):
        assert row["chats_bits_per_byte"] == pytest.approx(alone[row["text"]], abs=1e-5)
        assert row["bits_per_byte"] == first.score([row["text"]])[0].bits_per_byte
    assert any(row["chats_bits_per_byte"] != row["bits_per_byte"] for row in rows)

    moved = tandem.load(str(folder))
    next(moved.model.context_block.parameters()).add_(0.1)
    with pytest.raises(SettingsError, match="another ContextBlock, embedding or tokenizer"):
        scored(first, tmp_path / "other.jsonl", corpus, added=Added(also={"moved": moved}))
    clash = Added(contrast=scorer, also={"contrast": first})
    with pytest.raises(SettingsError, match="two figures would be called contrast_bits_per_byte"):
        scored(first, tmp_path / "other.jsonl", corpus, added=clash)
    assert not (tmp_path / "other.jsonl.partial").exists()


FORMS = {
    "plain": ("out.jsonl", {}),
    "parquet": ("out.parquet", {"added": Added(tokens=True, words=True)}),
    "rejected": ("out.jsonl", {"limits": Limits(max_perplexity=290.0), "rejected": "no.parquet"}),
    "share": ("out.parquet", {"limits": Limits(keep_quantile=0.5), "rejected": "no.jsonl"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_stopped_run_goes_on(
    form: str, scorer: Scorer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "WINDOW_DOCUMENTS", 3)
    name, more = FORMS[form]
    results = []
    for stopped in (False, True):
        place = tmp_path / str(stopped)
        place.mkdir()
        own = {**more, "rejected": place / more["rejected"]} if "rejected" in more else more
        if stopped:
            stop_in_window(3, monkeypatch, partial(scored, scorer, place / name, corpus, **own))
            assert {path.name for path in place.iterdir()} >= {f"{name}.partial", f"{name}.progress"}
            with (place / f"{name}.partial").open("ab") as file:
                file.write(b"half a row")
        counts = scored(scorer, place / name, corpus, **own)
        results.append(
            {path.name: path.read_bytes() for path in place.iterdir()}
            | {"": counts.model_dump(exclude={"job"})}
        )
    assert results[0] == results[1]
    assert set(results[0]) == {name, "", *([more["rejected"]] if "rejected" in more else [])}


def stop_in_window(number: int, monkeypatch: pytest.MonkeyPatch, begin: Callable[[], object]) -> None:
    """Begin, and be interrupted when so many windows are written, and the last of them is not counted."""
    write, calls = FileScoring._write, []

    def stopping(*args: Any) -> None:
        write(*args)
        calls.append(0)
        if len(calls) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FileScoring, "_write", stopping)
        with pytest.raises(KeyboardInterrupt):
            begin()


def test_what_went_wrong_is_mended_and_gone_on_with(
    scorer: Scorer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "WINDOW_DOCUMENTS", 3)
    lines = corpus.read_text("utf-8").splitlines(keepends=True)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join([*lines[:8], "{oops}\n", *lines[9:]]), "utf-8")
    with pytest.raises(DataError, match=rf"{bad}, line 9 is not valid JSON"):
        scored(scorer, tmp_path / "out.jsonl", bad)
    assert len((tmp_path / "out.jsonl.partial").read_text("utf-8").splitlines()) == 6
    bad.write_text("".join([lines[1], *lines[1:]]), "utf-8")
    with pytest.raises(DataError, match="the first 6 documents are no longer those that were scored before"):
        scored(scorer, tmp_path / "out.jsonl", bad)
    with pytest.raises(RunDirError, match="was begun by another command, or with another model"):
        scored(scorer, tmp_path / "out.jsonl", bad, limits=Limits(1.0))
    bad.write_text("".join(lines), "utf-8")
    scored(scorer, tmp_path / "out.jsonl", bad)
    scored(scorer, tmp_path / "whole.jsonl", corpus)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(RunDirError, match="is there already; remove it, or give another file"):
        scored(scorer, tmp_path / "out.jsonl", bad)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no file": (["none.jsonl"], "there is no file or directory none.jsonl; check the path"),
    "no text": (["other.jsonl"], r"other.jsonl, line 1 holds no document \(fields found: 'body'\)"),
    "no field": (["other.jsonl", "--text-field", "b"], r"line 1 has no field 'b' with a string in it"),
    "no string": (["number.jsonl", "--text-field", "text"], "number.jsonl, line 1 has no field 'text' with"),
    "own figures": (["own.jsonl"], "own.jsonl, line 1 has a field 'perplexity' of its own"),
    "not JSON": (["torn.jsonl"], "torn.jsonl, line 2 is not valid JSON"),
    "empty": (["empty.txt"], "empty.txt holds no documents; give another source"),
    "mixed": (["mixed.jsonl", "--output", "o.parquet"], "do not fit into the columns of one Parquet table"),
    "suffix": (["a.txt", "--output", "o.csv"], "--output o.csv is named neither .jsonl nor .parquet"),
    "share": (["a.txt", "--keep-quantile", "1.5", "--output", "o.jsonl"], "must be above 0 and below 1"),
    "no output": (["a.txt", "--keep-quantile", "0.5"], "--keep-quantile needs all figures .* --output"),
    "no limit": (["a.txt", "--rejected", "r.jsonl"], "nothing rejects a document; give a limit"),
    "one file": (
        ["a.txt", "--min-perplexity", "2", "--rejected", "o.jsonl", "--output", "o.jsonl"],
        "give two",
    ),
    "both": (["a.txt", "--pairs", "a.txt"], "--pairs takes none of files; give one or the other"),
    "no pair": (["--pairs", "torn.jsonl"], r"torn.jsonl, line 1 holds no pair \(fields found: 'text'\)"),
    "no pairs": (["--pairs", "empty.txt"], "empty.txt holds no pairs"),
    "threads": (["a.txt", "--threads", "0"], "--threads"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_is_one_sentence(
    case: str,
    scorer: Scorer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scorer_module, "Scorer", lambda *_: scorer)
    for name, content in {
        "other.jsonl": '{"body": "a"}\n',
        "number.jsonl": '{"text": 1}\n',
        "own.jsonl": '{"text": "a", "perplexity": 1}\n',
        "torn.jsonl": '{"text": "a"}\n{"text"\n',
        "mixed.jsonl": '{"text": "a", "id": 1}\n{"text": "b", "id": "x"}\n',
        "empty.txt": "",
        "a.txt": "a\n",
    }.items():
        Path(name).write_text(content, "utf-8")
    args, expected = REFUSED[case]
    assert run(["score", "model", *args]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("tandem: error: ")
    assert re.search(expected, said), said


def test_pairs(scorer: Scorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = sentences(12, seed=2)
    pairs = [
        {
            "UID": "order" if n % 3 else "other",
            "sentence_good": text,
            "sentence_bad": " ".join(text.split()[::-1]),
        }
        for n, text in enumerate(texts)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    result = score_pairs(scorer, str(path), SILENT)
    assert [(one.group, one.pairs) for one in result.groups] == [("other", 4), ("order", 8)]
    expected = 0
    for pair in pairs:
        good, bad = scorer.score([pair["sentence_good"], pair["sentence_bad"]])
        expected += (good.nll_nats or 0) * good.tokens < (bad.nll_nats or 0) * bad.tokens
    assert result.overall.correct == expected
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"good": texts[0], "bad": texts[0]}) + "\n", "utf-8")
    same = score_pairs(scorer, str(plain), SILENT)
    assert (same.groups[0].group, same.overall.correct) == ("pairs", 0)
    for pairs_count, correct in ((12, 9), (7, 0), (1, 1)):
        one = Accuracy.of("a", pairs_count, correct)
        interval = binomtest(correct, pairs_count).proportion_ci(method="wilson")
        assert (one.low, one.high) == pytest.approx(interval, abs=1e-6)
    model = scorer._made_of[0]
    assert run(["score", model, "--pairs", str(path), "--threads", "1"]) == 0
    assert re.search(r"order +8 +\d+\.\d% +\d+\.\d% to ", capsys.readouterr().out)
    assert run(["score", model, "--pairs", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(result.model_dump_json())


def test_the_command_writes_lines_and_says_how_fast(
    scorer: Scorer, corpus: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    model = scorer._made_of[0]
    assert run(["score", model, str(corpus), str(corpus), "--words"]) == 0
    out, err = capsysbinary.readouterr()
    rows = [json.loads(line) for line in out.decode().splitlines()]
    assert [row["id"] for row in rows] == [*range(11), *range(11)]
    assert rows[0]["word_scores"][0]["nll_nats"] > 0
    assert re.search(
        rb"scored 22 documents, [\d,]+ tokens \([\d,]+ documents and [\d,]+ tokens a second\)", err
    )
    assert run(["score", model, str(corpus), "--output", str(tmp_path / "o.jsonl")]) == 0
    assert b"kept 11 of 11 documents" in capsysbinary.readouterr().err


def test_threads(scorer: Scorer, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, threads = scorer._made_of[0], []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    assert run(["evaluate", model, "--data", str(corpus), "--threads", "2"]) == 0
    assert run(["generate", model, "--prompt", "the", "--max-new-tokens", "1", "--threads", "3"]) == 0
    assert run(["score", model, str(corpus), "--threads", "4"]) == 0
    assert threads == [2, 3, 4]


def test_a_single_text_is_no_list_of_texts(scorer: Scorer) -> None:
    with pytest.raises(TypeError, match="takes a list of texts"):
        scorer.score("text")
    with pytest.raises(SettingsError, match="keep_quantile = 2"):
        Limits(keep_quantile=2)
    assert issubclass(SettingsError, TandemError)


def test_datasets_map(scorer: Scorer, corpus: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    data = datasets.Dataset.from_list([{"text": row["text"]} for row in rows_of(corpus)])
    mapped = data.map(scorer.columns, batched=True, batch_size=4)
    expected = scorer.score(data["text"])
    assert mapped["perplexity"] == pytest.approx([one.perplexity for one in expected], rel=1e-5)
    assert scorer.__reduce__()[1][2] == scorer.fingerprint


def test_datatrove(scorer: Scorer, corpus: Path) -> None:
    data = pytest.importorskip("datatrove.data", reason="datatrove is not installed")
    from tandem.scoring.datatrove import TandemFilter

    texts = [row["text"] for row in rows_of(corpus)]
    scores = [one.perplexity or 0 for one in scorer.score(texts)]
    limit = sorted(scores)[5]
    step = TandemFilter(scorer._made_of[0], max_perplexity=limit, batch_size=4)
    documents = [data.Document(text=text, id=str(n)) for n, text in enumerate(texts)]
    kept = [document.id for document in step.run(iter(documents))]
    assert kept == [str(n) for n, score in enumerate(scores) if score <= limit]
    assert documents[0].metadata["perplexity"] == pytest.approx(scores[0], rel=1e-5)


def test_nemo_curator(scorer: Scorer, corpus: Path) -> None:
    pytest.importorskip("nemo_curator.stages.text.filters.doc_filter", reason="NeMo Curator is not installed")
    from tandem.scoring.nemo_curator import TandemDocumentFilter

    text = rows_of(corpus)[0]["text"]
    (score,) = scorer.score([text])
    assert score.perplexity is not None
    step = TandemDocumentFilter(scorer._made_of[0], max_perplexity=score.perplexity + 1)
    assert step.score_document(text) == score.perplexity
    assert step.keep_document(step.score_document(text))
    assert not step.keep_document(score.perplexity + 2)
    assert not step.keep_document(step.score_document(""))
