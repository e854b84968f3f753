"""Text that is too small, and settings that are wrong: all of it is said at once, and the advice works."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import WORDS, sentences, write_jsonl
from safetensors.torch import save_file

from tandem.cli.main import run
from tandem.errors import DataError, MisfitError, SettingsError
from tandem.experiment.prepared import prepare_variants
from tandem.settings import DataSettings, Settings, load_settings
from tandem.text.splits import split_documents


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """3 kB of text, in paragraphs."""
    text = "\n\n".join(line[:160] for line in sentences(20))
    path = tmp_path / "small [text].txt"
    path.write_text(text, "utf-8")
    return path


FAST = ("--threads", "1", "--device", "cpu", "--phase2.max-epochs", "1", "--data.txt-documents", "blank-line")
CASES = {
    "train": (("train",), ("tokenizer.vocab", "phase2.batch"), ("--prediction.max-epochs", "1")),
    "train, recipe original": (
        ("train", "original"),
        ("vocabulary", "phase1.batch", "phase2.batch", "spectral"),
        ("--data.validation", "None", "--tokenizer.source", "bpe", "--embeddings.source", "spectral",
         "--phase1.max-iterations", "2", "--model.embed-dim", "700", "--model.context-dim", "16"),
    ),
    "experiment": (
        ("experiment", "predictive", "--configurations", "1", "1", "--seeds", "0", "--baselines"),
        ("vocabulary", "phase2.batch"),
        ("--prediction.max-epochs", "1", "--model.embed-dim", "32", "--model.context-dim", "16",
         "--baselines.lstm.max-epochs", "1", "--baselines.gpt2.max-epochs", "1",
         "--baselines.awd-lstm.max-epochs", "1", "--baselines.transformer.max-epochs", "1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_all_that_is_too_small_is_said_with_a_command_that_works(
    case: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, named, sizes = CASES[case]
    args = [*given, *FAST, *sizes, "--data.train", str(small), "--output", str(tmp_path / "made")]
    assert run(args) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("tandem: error: ")
    assert all(name.split(".")[-1] in said for name in named), said
    advised = re.search(r"; add (--[^;]*?), or give more text$", said)
    assert advised, said
    assert run([*args, *shlex.split(advised[1])]) == 0, capsys.readouterr().err


def test_parameters_of_baselines_are_checked_before_any_run(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        *("experiment", "predictive", *FAST, "--data.train", str(small)),
        *("--configurations", "1", "1", "--seeds", "0", "--model.embed-dim", "2", "--model.context-dim", "2"),
        *("--phase2.batch-positions", "64", "--prediction.max-epochs", "1"),
        *(
            "--baselines.gpt2.max-epochs",
            "1",
            "--output",
            str(tmp_path / "run"),
            "--baselines.models",
            "gpt2",
        ),
    ]
    assert run(args) == 2
    said = capsys.readouterr().err
    assert "gpt2 has" in said
    assert "phase 1" not in said  # nothing was trained
    advised = shlex.split(said.split("; add ")[1].split(", or give")[0])
    assert {"--tokenizer.vocab-size", "--baselines.max-parameters"} <= {*advised}
    assert run([*args, *advised]) == 0, capsys.readouterr().err


def test_what_a_variant_sets_is_mended_in_its_file(small: Path) -> None:
    settings = Settings(
        data={"train": str(small), "txt_documents": "blank-line"},
        tokenizer={"vocab_size": 280},
        variants={"a": {"phase2": {"batch_positions": 9000}}, "b": {"recipe": "predictive"}},
    )
    with pytest.raises(MisfitError) as refused:
        prepare_variants(settings, lambda _: None)
    assert re.search(
        r"set variants\.a\.phase2\.batch_positions to \d+ in the settings file", str(refused.value)
    )
    assert "phase2.batch_positions" in refused.value.fitting  # for b
    assert "phase1.batch_positions" in refused.value.fitting


def test_equal_documents_are_said_to_be_equal(tmp_path: Path) -> None:
    same = write_jsonl(tmp_path / "same.jsonl", ["the same"] * 500)
    with pytest.raises(DataError, match=r"all 500 documents of .* are equal, and all but one were dropped"):
        split_documents(DataSettings(train=str(same)))


def test_what_became_of_documents_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [*sentences(60), *sentences(60), sentences(1)[0]])
    args = [
        *(
            "train",
            *FAST,
            "--data.train",
            str(mixed),
            "--output",
            str(tmp_path / "m"),
            "--phase2.negatives",
            "64",
        ),
        *("--tokenizer.vocab-size", "300", "--phase2.batch-positions", "256", "--prediction.max-epochs", "1"),
        *("--model.embed-dim", "16", "--model.context-dim", "16"),
    ]
    assert run(args) == 0
    said = capsys.readouterr()
    assert re.search(r"121 documents: 5\d to train on, \d for validation, 61 dropped as duplicates", said.err)
    assert "61 dropped as duplicates" in said.out
    few = split_documents(DataSettings(train=str(mixed), max_train_bytes=2000))
    assert few.left_out > 40
    assert f"121 documents: {len(few.train)} to train on" in few.in_words()
    assert f"{few.left_out} left out by data.max_train_bytes" in few.in_words()


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([], "holds no text"),
        ([" ", "\n\t"], "holds no text"),
        (["one"], "is a single document"),
        (["the one", " the  one "], "all 2 documents"),
    ],
)
def test_text_that_is_no_text(
    documents: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "text.jsonl", documents)
    assert run(["train", "--data.train", str(source), "--output", str(tmp_path / "m")]) == 2
    assert says in capsys.readouterr().err


def test_an_embedding_that_does_not_fit_is_said_with_the_rest(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.safetensors"
    save_file({"embedding.weight": torch.zeros(90, 6)}, table)
    args = ["train", *FAST, "--data.train", str(small), "--embeddings.source", str(table)]
    assert run([*args, "--output", str(tmp_path / "m")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    for part in ("a BPE vocabulary of", "phase2.batch_positions =", "of length 6", "has 90 rows"):
        assert part in said
    assert re.search(
        "; add --tokenizer.* --model.embed-dim 6, or .*use the tokenizer of the same model", said
    )


def test_text_that_no_settings_fit_is_said_to_be_too_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("a b c d\n\ne f g h", "utf-8")
    args = ["train", *FAST, "--data.train", str(tmp_path / "text.txt"), "--output", str(tmp_path / "m")]
    assert run(args) == 2
    said = capsys.readouterr().err
    assert "text.txt has 5 tokens, too few to learn from; give at least 81" in said
    assert "--phase2" not in said
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"text.txt"}
    assert not any("lock" in name or "partial" in name for name in left)
    assert not list((tmp_path / "cache" / "preparing").iterdir())
    assert not (tmp_path / "m").exists()


def test_fewer_tokens_than_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two short documents, read in 32 streams; one token is scored."""
    source = write_jsonl(tmp_path / "text.jsonl", [" ".join(WORDS[:6]), "the"])
    args = ["train", *FAST, "--data.train", str(source), "--output", str(tmp_path / "m")]
    sizes = ["--data.separator", "eos", "--model.embed-dim", "16", "--prediction.max-epochs", "1"]
    sizes += ["--phase2.batch-positions", "1"]
    assert run([*args, *sizes]) == 2
    advised = re.search(r"; add (--[^;]*?), or give more text$", capsys.readouterr().err.strip())
    assert advised
    assert run([*args, *sizes, *shlex.split(advised[1])]) == 0, capsys.readouterr().err
    assert run([*args, *sizes[2:], *shlex.split(advised[1]), "--data.separator", ""]) == 2
    assert "1 token(s)" in capsys.readouterr().err


def test_all_wrong_settings_of_a_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(
        "phase2: {lr: fast, patience: 0, epoch: 3}\nphase1: {lr: -1}\ndata: {trian: x}\nseeds: [1.5]\n"
        "baselines: {lstm: {lr: -3}}\nbogus: 3\n",
        "utf-8",
    )
    with pytest.raises(SettingsError) as refused:
        load_settings(str(file))
    wrong = ("phase2.lr = 'fast'", "phase2.patience = 0", "'phase2.epoch'", "phase1.lr = -1", "'data.trian'")
    for name in (*wrong, "seeds.0 = 1.5", "baselines.lstm.lr = -3", "'bogus'"):
        assert str(refused.value).count(name) == 1, name
    file.write_text(
        "seeds: [1, 1]\nbaselines: {models: [lstm, lstm]}\n"
        "variants: {a: {phase2: {lr: -1}}, b: {data: {}}}\n",
        "utf-8",
    )
    with pytest.raises(SettingsError) as refused:
        load_settings(str(file))
    for name in (
        "seeds repeat",
        "baselines.models repeat",
        "variants.a: setting phase2.lr",
        "variants.b.data",
    ):
        assert name in str(refused.value)


def test_all_impossible_values_of_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--phase2.lr", "-1", "--phase2.dropout", "2", "--model.embed-dim", "x", "--seeds", "0", "y"]
    assert run(["config", *wrong, "--configurations", "1", "0", "--precision", "low"]) == 2
    said = capsys.readouterr().err
    for name in (
        "phase2.lr",
        "phase2.dropout",
        "model.embed_dim",
        "seeds.1",
        "configurations.0.1",
        "precision",
    ):
        assert f"setting {name} = " in said
    assert run(["generate", "m", "--prompt", "x", "--top-k", "few", "--temperature", "hot"]) == 2
    said = capsys.readouterr().err
    assert "--top-k 'few' is not possible: it must be a whole number" in said
    assert "--temperature 'hot' is not possible: it must be a number" in said
