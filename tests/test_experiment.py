"""The grid end to end on small text: records, shared phase 1, taking up again, failures, saved models."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import sentences, tiny, write_jsonl
from safetensors.torch import load_file, save_file

from tandem.errors import DataError, RunDirError, ScanError, SettingsError
from tandem.experiment.artefacts import load_phase1, phase1_path
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.runner import run_experiment
from tandem.experiment.single_run import train_one
from tandem.fingerprint import fingerprint
from tandem.model_folder.loading import load_model
from tandem.objectives import OBJECTIVES
from tandem.records import RunRecord, append_record, read_manifest, read_records, records_path
from tandem.settings import Configuration, Settings
from tandem.training.progress import Tick, Watcher


def without_times(record: RunRecord) -> object:
    """The record less what differs between two identical runs: times, dates, memory and place."""
    varying = {"peak_memory_bytes", "finished_at", "folder"}

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if not k.endswith("_s") and k not in varying}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(record.model_dump(mode="json"))


class Interrupt(Watcher):
    """Stops the process's work, as Ctrl-C does, when a run begins."""

    def __init__(self, at: str, phase: str | None = None) -> None:
        self.at, self.phase, self.now, self.started = at, phase, "", []

    def run_started(self, run: str) -> None:
        self.now = run
        self.started.append(run)
        if run == self.at and self.phase is None:
            raise KeyboardInterrupt

    def tick(self, tick: Tick) -> None:
        if self.now == self.at and tick.phase == self.phase:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Made:
    """A finished experiment of two configurations and two seeds."""

    settings: Settings
    whole: list[RunRecord]
    run_dir: Path


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The experiment itself: made once, and left as it is."""
    folder = tmp_path_factory.mktemp("made")
    settings = tiny(write_jsonl(folder / "text.jsonl", sentences(20)), output=str(folder / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_CACHE", str(folder / "cache"))
        run_dir, records = run_experiment(settings, Watcher())
    return Made(settings, list(records), run_dir)


@pytest.fixture
def made(made_once: Made, tmp_path: Path) -> Made:
    """A copy of it that may be changed, in `run`."""
    run_dir = Path(shutil.copytree(made_once.run_dir, tmp_path / "run"))
    settings = made_once.settings.model_copy(update={"output": str(run_dir)})
    return Made(settings, made_once.whole, run_dir)


def test_an_experiment_end_to_end(text_file: Path, tmp_path: Path) -> None:
    settings = tiny(text_file, output=str(tmp_path / "run"), configurations=((1, 1), (1, 2), (2, 1)))
    run_dir, records = run_experiment(settings, Watcher())
    assert [record.run for record in records] == [
        "C1T1-seed0", "C1T2-seed0", "C2T1-seed0", "C1T1-seed1", "C1T2-seed1", "C2T1-seed1",
    ]  # fmt: skip
    assert all(record.status == "finished" for record in records)
    by_run = {record.run: record for record in records}

    # phase 1 depends on the context depth and the seed only, and is computed once for each pair of them
    assert by_run["C1T1-seed0"].phase1 == by_run["C1T2-seed0"].phase1
    assert by_run["C1T1-seed0"].phase1 != by_run["C1T1-seed1"].phase1
    assert by_run["C1T1-seed0"].phase1_computed_here
    assert not by_run["C1T2-seed0"].phase1_computed_here
    shared = by_run["C1T2-seed0"]
    assert shared.seconds_spent_s == pytest.approx(shared.phase2.seconds_s)
    assert shared.seconds_alone_s > shared.seconds_spent_s

    # a record's figures come out again from the saved model and the data
    manifest = read_manifest(run_dir)
    assert manifest.settings_fingerprint == settings.fingerprint() == records[0].settings_fingerprint
    for record in records:
        model, tokenizer = load_model(run_dir / "models" / record.run)
        assert model.num_params()["total"] == record.parameters.total
        assert model.config.name == record.configuration
        assert len(tokenizer) == record.data.vocab_size
        assert record.parameters.trained_phase1 == sum(p.numel() for p in model.context_block.parameters())
        assert record.validation.perplexity < record.data.vocab_size


def test_saved_models_score_as_recorded(text_file: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held.jsonl"
    lines = text_file.read_text("utf-8").splitlines(keepends=True)
    text_file.write_text("".join(lines[:16]), "utf-8")
    held_out.write_text("".join(lines[16:]), "utf-8")
    for boundary in ("carry", "reset"):
        settings = tiny(text_file, data={"validation": str(held_out)}, model={"boundary": boundary})
        folder = tmp_path / boundary
        record = train_one(settings, Configuration(2, 2), 0, folder, Watcher())
        result = evaluate_model(folder, str(held_out), device="cpu")
        assert result.perplexity == pytest.approx(record.validation.perplexity, rel=1e-5)
        assert result.accuracy == pytest.approx(record.validation.accuracy)
        assert result.bits_per_byte == pytest.approx(record.validation.bits_per_byte, rel=1e-5)
        assert result.effective_rank == pytest.approx(record.contexts.effective_rank_validation, rel=1e-4)
        assert 0 <= result.phase1["convergence_rate"] <= 1
        # and the model's own forward, by the sequential loop, gives the same loss
        model, tokenizer = load_model(folder)
        eos = model.config.bos_token_id
        ids = [token for line in lines[16:] for token in [eos, *tokenizer.encode(json.loads(line)["text"])]]
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
        assert float(loss.detach()) == pytest.approx(record.validation.nll_nats, abs=1e-4)


def test_the_same_settings_twice_give_identical_records(made: Made, tmp_path: Path) -> None:
    settings = made.settings.model_copy(update={"output": str(tmp_path / "again")})
    for first, second in zip(made.whole, run_experiment(settings, Watcher())[1], strict=True):
        assert without_times(first) == without_times(second)
        assert json.loads(first.model_dump_json())["phase2"]["history"]


def test_seeds_make_a_difference(made: Made) -> None:
    _, records = run_experiment(made.settings.model_copy(update={"seeds": (0, 1, 2)}), Watcher())
    assert len(records) == 6
    assert len({record.validation.nll_nats for record in records}) == len(records)
    assert len({record.phase1.history[0].loss for record in records}) == len(records)


@pytest.mark.parametrize("phase", [None, "phase 1", "phase 2"])
def test_an_interrupted_experiment_continues(made: Made, tmp_path: Path, phase: str | None) -> None:
    settings = made.settings.model_copy(update={"output": str(tmp_path / "torn")})
    with pytest.raises(KeyboardInterrupt):
        run_experiment(settings, Interrupt("C1T1-seed1", phase))
    kept = read_records(tmp_path / "torn")
    assert [record.run for record in kept] == ["C1T1-seed0", "C2T1-seed0"]

    follower = Interrupt(at="none")
    _, records = run_experiment(settings, follower)
    assert follower.started == ["C1T1-seed1", "C2T1-seed1"]  # finished runs are not repeated
    assert [without_times(r) for r in records] == [without_times(r) for r in made.whole]
    assert run_experiment(settings, follower)[1] == records
    assert len(follower.started) == 2


def test_a_torn_last_record_is_done_again(made: Made) -> None:
    path = records_path(made.run_dir)
    path.write_bytes(path.read_bytes()[:-100])
    assert [record.run for record in read_records(made.run_dir)] == ["C1T1-seed0", "C2T1-seed0", "C1T1-seed1"]
    assert [without_times(r) for r in run_experiment(made.settings, Watcher())[1]] == [
        without_times(r) for r in made.whole
    ]
    assert path.read_bytes().count(b"\n") == 4
    path.write_bytes(b"not a record\n" + path.read_bytes())
    with pytest.raises(RunDirError, match=r"records\.jsonl, line 1 is not a record"):
        read_records(made.run_dir)


def test_a_failed_run_is_recorded_and_the_others_go_on(text_file: Path, tmp_path: Path) -> None:
    good = tiny(text_file, output=str(tmp_path / "run"), seeds=(0,))

    class Saboteur(Watcher):
        def tick(self, tick: Tick) -> None:
            if tick.phase == "phase 2" and self.now == "C1T1-seed0":
                raise ScanError("the scan disagreed in this one run")
            if tick.phase == "phase 1" and self.now == "C2T1-seed0":
                raise ZeroDivisionError("a defect of the program")

        def run_started(self, run: str) -> None:
            self.now = run

    settings = good.model_copy(update={"configurations": ((1, 1), (1, 2), (2, 1))})
    run_dir, records = run_experiment(settings, Saboteur())
    outcome = {record.run: (record.status, record.failure) for record in records}
    assert outcome["C1T1-seed0"] == ("failed", "the scan disagreed in this one run")
    assert outcome["C1T2-seed0"] == ("finished", None)
    assert outcome["C2T1-seed0"][1].startswith("ZeroDivisionError: a defect of the program (see failures")
    assert "Traceback" in (run_dir / "failures" / "C2T1-seed0.txt").read_text("utf-8")
    paid = [record.run for record in records if record.phase1_computed_here]
    assert paid == ["C1T2-seed0"]  # phase 1's time is on the account of a run that finished

    _, again = run_experiment(settings, Watcher())
    assert all(record.status == "finished" for record in again)
    assert [record.run for record in again if record.phase1_computed_here] == ["C1T2-seed0", "C2T1-seed0"]


def test_a_run_directory_of_another_experiment_is_refused(made: Made) -> None:
    phase2 = made.settings.phase2.model_copy(update={"lr": 0.02})
    with pytest.raises(RunDirError, match="holds an experiment with other settings"):
        run_experiment(made.settings.model_copy(update={"phase2": phase2}), Watcher())
    assert read_records(made.run_dir) == made.whole
    # more seeds of the same experiment are welcome
    _, more = run_experiment(made.settings.model_copy(update={"seeds": (0, 3)}), Watcher())
    assert [r for r in more if r.seed == 0] == [r for r in made.whole if r.seed == 0]
    assert read_manifest(made.run_dir).seeds == (0, 1, 3)
    run_experiment(made.settings.model_copy(update={"seeds": (5,)}), Watcher())
    assert read_manifest(made.run_dir).seeds == (0, 1, 3, 5)  # what was asked for before stays part of it
    (made.run_dir / "manifest.json").unlink()
    with pytest.raises(RunDirError, match=r"no manifest\.json"):
        run_experiment(made.settings, Watcher())


def test_a_phase_1_of_anything_else_is_not_used(made: Made, tmp_path: Path) -> None:
    path, objective = phase1_path(made.run_dir, None, 1, 0), OBJECTIVES["original"]
    assert load_phase1(path, fingerprint("phase1", "another seed"), objective) is None
    path.write_bytes(path.read_bytes()[:-10])
    assert load_phase1(path, "whatever", objective) is None
    assert load_phase1(tmp_path / "none", "whatever", objective) is None


def test_trained_embeddings_move_and_contexts_follow(text_file: Path, tmp_path: Path) -> None:
    settings = tiny(text_file, embeddings={"trained": True})
    record = train_one(settings, Configuration(1, 1), 0, tmp_path / "model", Watcher())
    parameters = record.parameters
    assert parameters.trained_phase2 == parameters.token_block + parameters.embedding
    model, _ = load_model(tmp_path / "model")
    assert model.embed_norm.weight.eq(1).all()  # frozen, and not counted


def test_a_damaged_model_is_refused_not_scored(made: Made) -> None:
    folder = made.run_dir / "models" / "C2T1-seed1"
    (folder / "checksums.json").unlink()  # which would notice every change first
    config = json.loads((folder / "config.json").read_text("utf-8"))
    weights = load_file(folder / "model.safetensors")

    def refused(says: str, **change: object) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **change}), "utf-8")
        with pytest.raises(RunDirError, match=says) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)

    refused("missing keys", token_layers=2)
    refused("unexpected keys", context_layers=1)
    refused("mismatched keys", context_dim=20)
    refused("layer_norm_eps=None must be a number above 0", layer_norm_eps=None)
    refused("tokens", bos_token_id=100_000)
    refused("cannot be read", embed_dim=-1)
    name = "model.token_block.layers.0.linear.weight"
    save_file({**weights, name: weights[name] * math.nan}, folder / "model.safetensors", {"format": "pt"})
    refused("not finite")
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors", {"format": "pt"})
    refused("missing keys")
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    refused("cannot be read")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    load_model(folder)
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    refused("cannot be read")


def test_batches_through_the_saved_tokenizer_equal_single_texts(made: Made) -> None:
    model, tokenizer = load_model(made.run_dir / "models" / "C1T1-seed0")
    texts = ["the context", "a token block folds what came before it into"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    together = model.generate(**batch, max_new_tokens=8, do_sample=False)
    for text, row in zip(texts, together, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False)
        assert torch.equal(row[-8:], alone[0, -8:])


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"phase1": {"batch_positions": 10**6}}, SettingsError, "phase1.batch_positions = 1000000 is larger"),
        ({"phase2": {"batch_positions": 10**6}}, SettingsError, "phase2.batch_positions = 1000000 is larger"),
        ({"tokenizer": {"vocab_size": 5000}}, DataError, "add tokenizer.vocab_size"),
        ({"device": "cuda:7"}, SettingsError, "there is no device 'cuda:7'"),
        ({"model": {"boundary": "reset"}, "data": {"separator": ""}}, SettingsError, "needs data.separator"),
        ({"embeddings": {"source": "nowhere.safetensors"}}, DataError, "nowhere.safetensors"),
    ],
)
def test_settings_that_do_not_fit_the_text(
    text_file: Path, tmp_path: Path, wrong: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        run_experiment(tiny(text_file, output=str(tmp_path / "run"), **wrong), Watcher())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_records_append_and_the_latest_counts(made: Made) -> None:
    append_record(made.run_dir, made.whole[0].model_copy(update={"seconds_alone_s": 1.0}))
    assert next(record.seconds_alone_s for record in read_records(made.run_dir)) == 1.0
    assert len(read_records(made.run_dir)) == 4


SMALL_NETWORKS = {
    "models": ("unigram", "bigram", "kneser-ney", "untrained", "lstm", "gpt2", "transformer", "awd-lstm"),
    "untrained": ((1, 2), (2, 1)),
    "lstm": {"max_epochs": 1, "streams": 4},
    "awd_lstm": {"max_epochs": 1, "streams": 4},
    "transformer": {"max_epochs": 1, "heads": 2, "window": 16},
    "gpt2": {"max_epochs": 1, "heads": 2, "window": 16},
}


def test_baselines_stand_in_the_same_records(text_file: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    settings = tiny(text_file, output=output, configurations=((1, 1),), baselines=SMALL_NETWORKS)
    run_dir, records = run_experiment(settings, Watcher())
    assert [(record.failure, record.status) for record in records] == [(None, "finished")] * len(records)
    assert [record.run for record in records] == [
        "unigram", "bigram", "KN-5",
        "C1T1-seed0", "C1T2-untrained-seed0", "C2T1-untrained-seed0",
        "LSTM-seed0", "AWD-LSTM-seed0", "GPT-2-seed0", "Transformer-seed0",
        "C1T1-seed1", "C1T2-untrained-seed1", "C2T1-untrained-seed1",
        "LSTM-seed1", "AWD-LSTM-seed1", "GPT-2-seed1", "Transformer-seed1",
    ]  # fmt: skip
    by_run = {record.run: record for record in records}
    assert read_manifest(run_dir).baselines == tuple(r.run for r in records if r.kind != "tandem")
    nll = {run: record.validation.nll_nats for run, record in by_run.items()}
    assert nll["KN-5"] < nll["bigram"] < nll["unigram"] < math.log(300)
    # the same text is scored by all: the same documents, the same tokens
    tokens = {run: tuple(record.validation.documents.unpack()[0]) for run, record in by_run.items()}
    assert len(set(tokens.values())) == 1
    assert sum(tokens["KN-5"]) == by_run["KN-5"].data.validation_tokens - 1
    for record in records:
        scored, summed = record.validation.documents.unpack()
        assert summed.sum() / scored.sum() == pytest.approx(record.validation.nll_nats, rel=1e-5)
    allowed = by_run["C1T1-seed0"].parameters.total
    for name in ("LSTM-seed0", "AWD-LSTM-seed0", "GPT-2-seed0", "Transformer-seed0"):
        assert 0.75 * allowed < by_run[name].parameters.total <= allowed
    control = by_run["C1T2-untrained-seed0"]
    assert control.phase1 is None
    assert control.parameters.trained_phase1 == 0
    assert (control.context_layers, control.token_layers) == (1, 2)
    assert nll["LSTM-seed0"] != nll["LSTM-seed1"]


def test_a_baseline_with_other_settings_is_made_anew(text_file: Path, tmp_path: Path) -> None:
    def settings(**lstm: object) -> Settings:
        baselines = {
            **SMALL_NETWORKS,
            "models": ("lstm", "bigram"),
            "lstm": {**SMALL_NETWORKS["lstm"], **lstm},
        }
        output = str(tmp_path / "run")
        return tiny(text_file, output=output, configurations=((1, 1),), seeds=(0,), baselines=baselines)

    _, first = run_experiment(settings(), Watcher())
    _, again = run_experiment(settings(), Watcher())
    assert again == first
    _, other = run_experiment(settings(lr=0.02), Watcher())
    changed = [a.run for a, b in zip(first, other, strict=True) if a != b]
    assert changed == ["LSTM-seed0"]


def test_records_of_another_version_are_refused(made: Made) -> None:
    run_dir, values = made.run_dir, json.loads(made.whole[0].model_dump_json())
    records_path(run_dir).write_text(json.dumps({**values, "schema_version": 2}) + "\n", "utf-8")
    with pytest.raises(
        RunDirError, match=r"line 1 is not a record of this version of Tandem \(schema_version: "
    ):
        read_records(run_dir)
