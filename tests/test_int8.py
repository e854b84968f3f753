"""Weights of 8 bits: what they cost in perplexity, what they save, and what is refused."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import PREDICTIVE, sentences, tiny, write_jsonl
from transformers import AutoModelForCausalLM
from warm import python

from tandem.cli.main import run
from tandem.contexts import Stream, compute_contexts
from tandem.cross_entropy import nll_and_hits, token_nll
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.generate import _drawn, generate_text
from tandem.experiment.single_run import train_one
from tandem.metrics import score_stream
from tandem.model import TandemConfig, TandemForCausalLM, sequential_contexts
from tandem.model.quantized_tandem import Int8Linear, multiplies_int8
from tandem.model_folder.loading import load_model
from tandem.settings import Configuration, ContextSettings
from tandem.training.progress import Watcher

WIDE = {"embed_dim": 96, "context_dim": 64}
"""So wide that products of several positions are of 8-bit numbers, and few bytes are scales."""


@pytest.fixture(scope="module", params=["original", "predictive"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of each recipe, and so of each cell."""
    place = tmp_path_factory.mktemp("int8")
    more = PREDICTIVE if request.param == "predictive" else {}
    model = {**(more.get("model", {})), **WIDE}  # type: ignore[dict-item]
    text = write_jsonl(place / "text.jsonl", sentences(60))
    train_one(tiny(text, **{**more, "model": model}), Configuration(1, 2), 0, place / "model", Watcher())
    return place / "model"


@pytest.fixture(scope="module")
def copied(trained: Path) -> Path:
    """What `tandem quantize` makes of it."""
    assert run(["quantize", str(trained)]) == 0
    return trained.with_name("model-int8")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_jsonl(tmp_path_factory.mktemp("held") / "held.jsonl", sentences(12, seed=9)))


def test_perplexity_is_within_half_a_percent(trained: Path, copied: Path, held: str) -> None:
    exact = evaluate_model(trained, held, device="cpu")
    rounded = evaluate_model(trained, held, device="cpu", int8=True)
    assert not exact.int8
    assert rounded.int8
    assert rounded.perplexity == pytest.approx(exact.perplexity, rel=0.005)
    assert rounded.perplexity != exact.perplexity
    assert rounded.accuracy == pytest.approx(exact.accuracy, abs=0.01)
    saved = evaluate_model(copied, held, device="cpu")
    assert saved.int8
    assert saved.nll_nats == rounded.nll_nats


def test_a_copy_is_a_quarter_and_transformers_loads_it_alone(trained: Path, copied: Path) -> None:
    before, after = ((folder / "model.safetensors").stat().st_size for folder in (trained, copied))
    assert after < 0.33 * before  # names, biases and norms weigh much in so small a model
    names = {path.name for path in copied.iterdir()}
    assert {"settings.yaml", "record.json", "tokenizer.json", "quantized_tandem.py"} <= names
    assert not any("snapshots" in name or "sample" in name for name in names)
    assert "rounded to 8 bits" in (copied / "README.md").read_text("utf-8")
    model, _ = load_model(copied)
    ids = torch.arange(40)[None] % model.config.vocab_size
    torch.save((ids, model(ids).logits.detach()), copied.parent / "expected.pt")
    code = (
        "import sys, torch; sys.modules['tandem'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(copied)!r}, trust_remote_code=True)\n"
        f"ids, expected = torch.load({str(copied.parent / 'expected.pt')!r})\n"
        "assert torch.equal(m(ids).logits, expected)\n"
    )
    subprocess.run([python(), "-c", code], env={**os.environ, "WITHOUT_TANDEM": "yes"}, check=True)


def test_generation_from_a_copy_is_that_of_the_rounded_model(trained: Path, copied: Path) -> None:
    texts = [
        generate_text(folder, "the", device="cpu", int8=int8, max_new_tokens=12, stream=False)
        for folder, int8 in ((trained, True), (copied, False), (copied, True))
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_token_is_drawn_by_its_probability() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0]])
    torch.manual_seed(0)
    drawn = torch.cat([_drawn(probabilities) for _ in range(4000)])
    shares = drawn.bincount(minlength=6) / len(drawn)
    torch.testing.assert_close(shares, probabilities[0], rtol=0, atol=0.03)
    assert shares[[0, 2, 5]].sum() == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.5, "top_k": 500, "top_p": 0.9},
        {"top_p": 1.0},
    ],
)
def test_generated_text_is_that_of_transformers(trained: Path, options: dict[str, float]) -> None:
    """Its own loop around the blocks draws as `model.generate` does."""
    model, tokenizer = load_model(trained)
    ours = generate_text(
        trained,
        "the context",
        device="cpu",
        seed=3,
        max_new_tokens=40,
        stream=False,
        **options,  # type: ignore[arg-type]
    )
    ids = [tokenizer.eos_token_id, *tokenizer.encode("the context")]
    assert len(ids) == ours["prompt_tokens"]
    warm = options.get("temperature") != 0
    drawing = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options, "do_sample": True}
    torch.manual_seed(3)
    theirs = model.generate(
        torch.tensor([ids]), max_new_tokens=40, **(drawing if warm else {"do_sample": False})
    )
    assert tokenizer.decode(theirs[0, len(ids) :], skip_special_tokens=True) == ours["text"]
    assert theirs.shape[1] - len(ids) == ours["new_tokens"]


def test_a_copy_counts_and_saves_as_the_model_does(trained: Path, copied: Path, tmp_path: Path) -> None:
    model, rounded = load_model(trained)[0], load_model(copied)[0]
    assert rounded.num_params() == model.num_params()
    assert model.to_int8() is model
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    state = again.state_dict()
    assert state.keys() == rounded.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in rounded.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="takes no new tokens"):
        again.resize_token_embeddings(again.config.vocab_size + 1)


@torch.no_grad()
def test_contexts_read_float_and_agree_with_the_loop(copied: Path) -> None:
    model, _ = load_model(copied)
    ids = torch.randint(model.config.vocab_size, (400,), generator=torch.Generator().manual_seed(1))
    stream = Stream.of(model, ids.numpy())
    settings = ContextSettings(segment_length=64, check_tokens=256)
    contexts, scan = compute_contexts(model, stream, settings)
    assert max(scan.loop_error, scan.join_error) <= settings.tolerance
    loop = sequential_contexts(model.context_block, model.embed(ids)[None])[1][0]
    assert loop.dtype == torch.float32
    assert float((contexts.at(torch.arange(400)) - loop).abs().max()) < 1e-4
    whole, parts = (score_stream(model, stream, contexts, chunk).nll_nats for chunk in (512, 50))
    assert whole == pytest.approx(parts, rel=2e-3)


@pytest.fixture
def layer() -> tuple[torch.nn.Linear, Int8Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = torch.nn.Linear(128, 512)
    return linear, Int8Linear(linear)


@torch.no_grad()
def test_products_are_those_of_the_rounded_matrix(layer: tuple[torch.nn.Linear, Int8Linear]) -> None:
    """Few in float32, many in whole numbers; another precision always in floats."""
    linear, rounded = layer
    step = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
    assert bool(((rounded.weight - linear.weight).abs() <= step * 0.501).all())
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    expected = torch.nn.functional.linear(x, rounded.weight, linear.bias)
    assert torch.equal(rounded(x[:1]), torch.nn.functional.linear(x[:1], rounded.weight, linear.bias))
    if multiplies_int8():
        many = rounded(x)
        assert not torch.equal(many, expected)
        assert float((many - expected).norm() / expected.norm()) < 0.03
    twin = copy.deepcopy(rounded).double()
    assert twin(x.double()).dtype == torch.float64
    torch.testing.assert_close(twin(x.double()).float(), expected)
    zero = torch.nn.Linear(4, 3)
    torch.nn.init.zeros_(zero.weight)
    assert torch.equal(Int8Linear(zero)(x[:, :4]), zero(x[:, :4]))


def test_losses_of_many_positions_are_those_of_the_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(150, 16, generator=generator), torch.randn(40, 16, generator=generator)
    targets = torch.randint(40, (150,), generator=generator)
    nll, best = token_nll(hidden, head, targets)
    losses, hits = nll_and_hits(hidden, lambda part: part @ head.t(), targets)
    torch.testing.assert_close(losses, nll)
    assert torch.equal(hits, best == targets)


@torch.no_grad()
def test_an_untied_head_has_rows_of_its_own(tmp_path: Path) -> None:
    config = TandemConfig(
        vocab_size=60, embed_dim=16, context_dim=8, output_bias=True, tie_word_embeddings=False
    )
    model = TandemForCausalLM(config).eval()
    ids = torch.arange(60)[None]
    before = model(ids).logits
    after = model.to_int8()(ids).logits
    assert float((after - before).norm() / before.norm()) < 0.03
    model.save_pretrained(tmp_path)
    assert torch.equal(TandemForCausalLM.from_pretrained(tmp_path)(ids).logits, after)


def test_what_is_refused_is_one_sentence(
    trained: Path,
    copied: Path,
    held: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*args: str | Path) -> str:
        assert run([str(arg) for arg in args]) == 2
        return capsys.readouterr().err

    capsys.readouterr()
    assert "holds 8-bit weights already" in said("quantize", copied, "--output", tmp_path / "again")
    assert "would be lost; give another --output" in said("quantize", trained, "--output", copied)
    assert "no place for a model folder" in said("quantize", trained, "--output", copied / "within")
    assert "audit the folder that it was made from" in said("audit", copied)
    monkeypatch.setattr("tandem.experiment.inference.multiplies_int8", lambda: False)
    for call in (("evaluate", trained, "--data", held), ("generate", trained, "--prompt", "the")):
        message = said(*call, "--int8")
        assert "--int8 is not possible: torch" in message
        assert "no products of 8-bit numbers for this processor" in message
    assert not (tmp_path / "again").exists()


def test_a_copy_works_where_there_are_no_such_products(
    copied: Path, held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = evaluate_model(copied, held, device="cpu")
    monkeypatch.setattr("tandem.model.quantized_tandem.multiplies_int8", lambda: False)
    assert evaluate_model(copied, held, device="cpu").nll_nats == pytest.approx(there.nll_nats, abs=0.01)


def test_quantize_prints_json(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", str(trained), "--output", str(tmp_path / "small"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["output"] == str(tmp_path / "small")
    assert said["output_bytes"] < 0.33 * said["model_bytes"]
