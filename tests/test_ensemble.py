"""Several models as one: the average of their probabilities, wherever one model is used."""

import copy
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PREDICTIVE, sentences, tiny, write_jsonl
from transformers import AutoModelForCausalLM
from warm import python

import tandem
from tandem.cli.main import run
from tandem.contexts import Stream, compute_contexts
from tandem.dynamic_evaluation import PART_TOKENS, score_and_learn
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.generate import generate_text
from tandem.experiment.single_run import train_one
from tandem.metrics import score_average, score_stream
from tandem.model import TandemCache, TandemConfig, TandemEnsemble, TandemEnsembleConfig, TandemForCausalLM
from tandem.model_folder.loading import load_model
from tandem.settings import Configuration, ContextSettings
from tandem.training.progress import Watcher

SIZES = ((6, 1, 1, "gated"), (8, 2, 2, "gated"), (5, 1, 2, "residual"))
"""Members of other widths, depths and cells."""


@pytest.fixture(scope="module")
def members() -> list[TandemForCausalLM]:
    torch.manual_seed(0)
    return [
        TandemForCausalLM(
            TandemConfig(
                vocab_size=50,
                embed_dim=8 + width,
                context_dim=width,
                context_layers=deep,
                token_layers=wide,
                cell=cell,
                output_bias=cell == "gated",
                boundary="reset",
                bos_token_id=0,
                eos_token_id=1,
            )
        ).eval()
        for width, deep, wide, cell in SIZES
    ]


@pytest.fixture(scope="module")
def ensemble(members: list[TandemForCausalLM]) -> TandemEnsemble:
    return TandemEnsemble.of(members)


IDS = torch.tensor([[3, 9, 4, 0, 7, 7, 30, 12], [0, 5, 6, 41, 2, 8, 49, 11]])


def averaged(members: list[TandemForCausalLM], ids: torch.Tensor) -> torch.Tensor:
    """What an ensemble should say, by the definition."""
    return torch.stack([member(ids).logits.double().softmax(-1) for member in members]).mean(0).log()


@torch.no_grad()
def test_probabilities_are_averaged(members: list[TandemForCausalLM], ensemble: TandemEnsemble) -> None:
    found = ensemble(IDS, labels=IDS)
    expected = averaged(members, IDS)
    torch.testing.assert_close(found.logits.double(), expected, rtol=0, atol=1e-5)
    nll = -expected[:, :-1].gather(-1, IDS[:, 1:, None]).mean()
    assert float(found.loss) == pytest.approx(float(nll), rel=1e-5)
    assert found.past_key_values.context.shape == (2, 6 + 8 + 5)
    assert torch.equal(ensemble(IDS, logits_to_keep=2).logits, found.logits[:, -2:])


@torch.no_grad()
def test_it_reads_on_from_its_state(ensemble: TandemEnsemble, tmp_path: Path) -> None:
    whole = ensemble(IDS).logits
    cache = TandemCache()
    parts = [ensemble(part, past_key_values=cache, use_cache=True).logits for part in IDS.split(3, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    state = ensemble.read(IDS[:1, :-1])
    ensemble.save_state(state, tmp_path / "state")
    again = ensemble.load_state(tmp_path / "state")
    after = ensemble(IDS[:1, -1:], past_key_values=again).logits
    torch.testing.assert_close(after[0, 0], whole[0, -1])
    swapped = TandemEnsemble.of([copy.deepcopy(ensemble.members[n]) for n in (1, 0, 2)])
    with pytest.raises(ValueError, match="another model's"):
        swapped.load_state(tmp_path / "state")


@torch.no_grad()
def test_padding_changes_nothing(ensemble: TandemEnsemble) -> None:
    plain = ensemble(IDS[:1, :5]).logits[:, -1]
    padded = torch.cat((IDS.new_full((1, 3), 17), IDS[:1, :5]), dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 5])
    torch.testing.assert_close(ensemble(padded, attention_mask=mask).logits[:, -1], plain)


@torch.no_grad()
def test_generate_and_beams_follow_the_average(ensemble: TandemEnsemble) -> None:
    ids = IDS[:, :4]
    for _ in range(3):
        best = ensemble(ids).logits[:, -1].argmax(-1)
        ids = torch.cat((ids, best[:, None]), dim=1)
    asked = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    assert torch.equal(ensemble.generate(IDS[:, :4], **asked), ids)
    found = ensemble.generate(
        IDS[:1, :4], num_beams=3, output_scores=True, return_dict_in_generate=True, **asked
    )
    text = found.sequences
    said = ensemble(text).logits.log_softmax(-1)[0, 3:-1].gather(-1, text[0, 4:, None])
    assert float(found.sequences_scores) == pytest.approx(float(said.mean()), rel=1e-4)


def test_it_saves_and_loads_without_tandem(ensemble: TandemEnsemble, tmp_path: Path) -> None:
    ensemble.save_pretrained(tmp_path / "model")
    logits = ensemble(IDS).logits.detach()
    here = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(here(IDS).logits, logits)
    for member in here.members:
        assert member.lm_head.weight is member.embedding.weight
    torch.save((IDS, logits), tmp_path / "expected.pt")
    code = (
        "import sys, torch; sys.modules['tandem'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"ids, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"folder = {str(tmp_path / 'model')!r}\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)\n"
        "assert torch.equal(model(ids).logits, expected)\n"
    )
    subprocess.run([python(), "-c", code], env={**os.environ, "WITHOUT_TANDEM": "yes"}, check=True)


def test_eight_bits_are_those_of_the_members(members: list[TandemForCausalLM], tmp_path: Path) -> None:
    rounded = TandemEnsemble.of(copy.deepcopy(members)).to_int8()
    expected = averaged([copy.deepcopy(member).to_int8() for member in members], IDS)
    torch.testing.assert_close(rounded(IDS).logits.double(), expected, rtol=0, atol=1e-5)
    rounded.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.int8
    torch.testing.assert_close(again(IDS).logits, rounded(IDS).logits, rtol=0, atol=1e-5)


def test_a_configuration_refuses_what_contradicts_itself() -> None:
    good = TandemEnsembleConfig.of([TandemConfig(vocab_size=9), TandemConfig(vocab_size=9, num_layers=2)])
    assert good.name == "C1T1 + C2T2"
    assert good.members is not None
    first, second = good.members
    for wrong, words in (
        ([first], "at least two members"),
        ([first, {**second, "vocab_size": 8}], "members differ in vocab_size: 9 and 8"),
        ([{**first, "int8": True}, second], "members differ in int8: True and False"),
        ([{**first, "pad_token_id": 1}, second], "members differ in pad_token_id: 1 and None"),
        ([first, {**second, "kernel": "hub/kernel"}], "a field 'kernel'"),
        ([first, {**second, "context_dim": 0}], "context_dim=0"),
    ):
        with pytest.raises(ValueError, match=words):
            TandemEnsembleConfig(members=wrong)
    with pytest.raises(ValueError, match="an embedding of its own"):
        TandemEnsemble(good)(inputs_embeds=torch.zeros(1, 2, 768))


def test_a_stream_scores_as_the_average_of_members(members: list[TandemForCausalLM]) -> None:
    ids = torch.randint(50, (900,), generator=torch.Generator().manual_seed(1))
    stream = Stream.of(members[0], ids)
    contexts = [compute_contexts(member, stream, ContextSettings(), 1 << 30)[0] for member in members]
    alone = [score_stream(m, stream, own, 128) for m, own in zip(members, contexts, strict=True)]
    found = score_average(members, stream, contexts, 128)
    likelihood = np.exp(-np.stack([one.losses for one in alone])).mean(0)
    np.testing.assert_allclose(found.losses, -np.log(likelihood), rtol=1e-4)
    with torch.no_grad():
        expected = averaged(members, ids[None])[0, :-1].argmax(-1) == ids[1:]
    assert found.accuracy == pytest.approx(float(expected.double().mean()), abs=2 / 900)
    learned = score_and_learn(members, stream, contexts)
    np.testing.assert_allclose(learned.losses[:PART_TOKENS], found.losses[:PART_TOKENS], rtol=1e-4)
    assert learned.nll_nats < found.nll_nats  # of tokens drawn alike, the frequencies can be learned


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained models of one text, and their ensemble."""
    place = tmp_path_factory.mktemp("ensemble")
    text = write_jsonl(place / "text.jsonl", sentences(60))
    for seed in (0, 1):
        train_one(tiny(text, **PREDICTIVE), Configuration(1, 2), seed, place / f"seed{seed}", Watcher())
    models = [place / f"seed{seed}" for seed in (0, 1)]
    both = place / "both"
    assert run(["ensemble", *map(str, models), "--output", str(both)]) == 0
    return [*models, both]


def test_a_folder_is_evaluated_scored_and_generated_from(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", sentences(12, seed=9))
    texts = [json.loads(line)["text"] for line in held.read_text("utf-8").splitlines()]
    one, other, both = (tandem.load(str(folder), "cpu") for folder in folders)
    for text in texts[:3]:
        ours, theirs, found = ([t.nll_nats for t in s.tokens(text)] for s in (one, other, both))
        likelihood = (np.exp(-np.array(ours)) + np.exp(-np.array(theirs))) / 2
        np.testing.assert_allclose(found, -np.log(likelihood), atol=1e-4)
    cut = texts[0].index(" ", 5)  # a new word begins with its space, so tokens are those of the whole
    first, rest = texts[0][:cut], texts[0][cut:]
    total, state = both.base_score(both.begin(), first)
    more, _ = both.base_score(state, rest)
    nll = both.score([texts[0]])[0]
    assert nll.nll_nats is not None
    assert total + more == pytest.approx(-nll.nll_nats * nll.tokens / math.log(10), rel=1e-4)
    evaluated = [evaluate_model(folder, str(held), device="cpu", adapt=True) for folder in folders]
    assert evaluated[2].configuration == "C1T2 + C1T2"
    assert evaluated[2].nll_nats < sum(one.nll_nats for one in evaluated[:2]) / 2
    assert evaluated[2].adapted is not None
    model, tokenizer = load_model(folders[2])
    said = generate_text(folders[2], "the", max_new_tokens=5, temperature=0, device="cpu", stream=False)
    ids = tokenizer.encode(tokenizer.eos_token + "the", return_tensors="pt")
    by_library = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert said["text"] == tokenizer.decode(by_library, skip_special_tokens=True)
    capsys.readouterr()
    assert run(["quantize", str(folders[2]), "--output", str(tmp_path / "rounded")]) == 0
    rounded = evaluate_model(tmp_path / "rounded", str(held), device="cpu")
    assert rounded.int8
    assert rounded.perplexity == pytest.approx(evaluated[2].perplexity, rel=0.01)
    assert "averaged" in (folders[2] / "README.md").read_text("utf-8")


def test_adapted_ensembles_share_contexts(folders: list[Path], tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", sentences(40, seed=5))
    adapted = [tmp_path / folder.name for folder in folders[:2]]
    for folder, to in zip(folders, adapted, strict=False):
        assert run(["adapt", str(folder), "--data", str(other), "--output", str(to)]) == 0
    both = tmp_path / "both-adapted"
    assert run(["ensemble", *map(str, adapted), "--output", str(both)]) == 0
    scorer, also = tandem.load(str(folders[2]), "cpu"), tandem.load(str(both), "cpu")
    scorer.check_same_contexts(also)
    texts = sentences(3, seed=7)
    own, theirs = scorer.scored_with([also], texts)
    assert [scored.score for scored in own] == scorer.score(texts)
    assert [scored.score for scored in theirs] == also.score(texts)
    assert [scored.score for scored in own] != [scored.score for scored in theirs]


def test_what_cannot_be_averaged_is_one_sentence(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, both = folders
    elsewhere = write_jsonl(tmp_path / "elsewhere.jsonl", sentences(50, seed=3))
    other = tmp_path / "other"
    train_one(tiny(elsewhere, **PREDICTIVE), Configuration(1, 1), 0, other, Watcher())
    assert run(["quantize", str(two), "--output", str(tmp_path / "rounded")]) == 0
    capsys.readouterr()

    def said(*args: Path | str) -> str:
        assert run([str(arg) for arg in args]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert "Traceback" not in err
        return err

    new = tmp_path / "new"
    for given, words in (
        ((one,), "two models or more"),
        ((one, one), "is given twice"),
        ((one, both), "is an ensemble itself"),
        ((one, other), "has another tokenizer than"),
        ((one, tmp_path / "rounded"), "members differ in int8"),
        ((one, tmp_path), "not a model folder"),
    ):
        assert words in said("ensemble", *given, "--output", new)
        assert not new.exists()
    assert "holds a model, which would be lost" in said("ensemble", one, two, "--output", both)
    assert "holds an ensemble of 2 models" in said("adapt", both, "--data", elsewhere)


def test_damage_to_an_ensemble_is_named(folders: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for change, words in (
        (lambda values: values["members"].pop(), "at least two members"),
        (lambda values: values["members"][1].update(context_dim=9999), "C|shape|mismatched"),
        (lambda values: values["members"][1].update(token_layers=10**9), "token_layers"),
        (lambda values: values.update(members=7), "cannot be read"),
        (lambda values: values.update(model_type=["tandem"]), "a model of type"),
    ):
        shutil.copytree(folders[2], folder)
        values = json.loads((folder / "config.json").read_text("utf-8"))
        change(values)
        (folder / "config.json").write_text(json.dumps(values), "utf-8")
        with pytest.raises(tandem.errors.RunDirError, match=words):
            load_model(folder, verify=False)
        shutil.rmtree(folder)
