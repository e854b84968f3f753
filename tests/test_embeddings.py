"""Embeddings: spectral, random, and from the files of a trained model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tandem.errors import DataError
from tandem.settings import EmbeddingSettings
from tandem.text import hub
from tandem.tokens import embeddings
from tandem.tokens.embeddings import embedding_table, pretrained, spectral
from tandem.tokens.store import TokenStream

V, E = 30, 8


def stream(ids, starts=(0,)):
    sizes = np.ones(len(starts), np.int64)
    return TokenStream(np.asarray(ids, np.uint16), np.asarray(starts, np.int64), sizes, len(ids))


@pytest.fixture
def corpus():
    """Two groups of tokens, 1..9 and 10..19, that never meet in a document; 20..29 never occur."""
    rng = np.random.default_rng(0)
    groups = [rng.integers(low, high, 200) for low, high in ((1, 10), (10, 20)) * 3]
    train = stream(np.concatenate(groups), range(0, 1200, 200))
    return SimpleNamespace(train=train, vocab_size=V)


def rms(table):
    return np.sqrt(np.square(table.astype(np.float64)).sum(axis=1).mean())


# --- spectral and random ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["spectral", "random"])
def test_scaled_deterministic_and_of_the_right_kind(corpus, source):
    settings = EmbeddingSettings(source=source, norm=3.0)
    table, mark = embedding_table(settings, corpus, E, None)
    again, same_mark = embedding_table(settings, corpus, E, None)
    assert (table.shape, table.dtype) == ((V, E), np.float32)
    assert rms(table) == pytest.approx(3.0, rel=1e-5)
    assert table.tobytes() == again.tobytes()
    assert mark == same_mark
    other, other_mark = embedding_table(settings, corpus, E, None, seed=1)
    assert (mark != other_mark) == (source == "random")
    assert np.array_equal(table, other) == (source == "spectral")


@pytest.mark.parametrize("many", [10_000, 0], ids=["few tokens", "many tokens"])
def test_spectral_does_not_depend_on_threads_or_random_state(corpus, monkeypatch, many):
    monkeypatch.setattr(embeddings, "MANY_TOKENS", many)
    before = torch.get_num_threads()
    first = spectral(corpus.train, V, E, 4, 1.0)
    state = torch.get_rng_state()
    torch.set_num_threads(3)
    try:
        torch.manual_seed(123)
        assert spectral(corpus.train, V, E, 4, 1.0).tobytes() == first.tobytes()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)


@pytest.mark.parametrize("many", [10_000, 5], ids=["few tokens", "many tokens"])
def test_spectral_is_the_truncated_svd_of_ppmi(corpus, monkeypatch, many):
    """Against the definition, computed pair by pair and with a dense SVD."""
    monkeypatch.setattr(embeddings, "MANY_TOKENS", many)
    window, ids = 3, corpus.train.ids.astype(int)
    counts = np.zeros((V, V))
    for start in range(0, 1200, 200):
        for i in range(start, start + 200):
            for j in range(i + 1, min(i + window + 1, start + 200)):
                counts[ids[i], ids[j]] += 1 / (j - i)
                counts[ids[j], ids[i]] += 1 / (j - i)
    totals = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ppmi = np.nan_to_num(np.maximum(np.log(counts * counts.sum() / np.outer(totals, totals)), 0))
    u, s, _ = np.linalg.svd(ppmi)
    expected = (u * np.sqrt(s))[:, :E]
    expected *= np.sign(np.take_along_axis(expected, np.abs(expected).argmax(0, keepdims=True), 0))
    table = spectral(corpus.train, V, E, window, 1.0).astype(np.float64)
    seen = ppmi.any(axis=1)
    scale = rms(table[seen]) / rms(expected[seen])
    np.testing.assert_allclose(table[seen], scale * expected[seen], atol=1e-4 if many == 5 else 1e-5)


def test_spectral_tells_groups_apart_and_does_not_cross_documents(corpus):
    table = spectral(corpus.train, V, E, 4, 1.0).astype(np.float64)
    directions = table / np.linalg.norm(table, axis=1, keepdims=True)
    similarity = directions @ directions.T
    assert similarity[1:10, 1:10].mean() > similarity[1:10, 10:20].mean() + 0.3
    # Documents that never share a token never meet, however wide the window.
    apart = embeddings._cooccurrences(stream([1, 2, 3, 4], [0, 2]), 5, 9).toarray()
    assert apart[1, 2] == apart[2, 1] == 1.0
    assert apart[2, 3] == apart[1, 3] == 0.0


def test_tokens_never_seen_get_short_distinct_vectors(corpus):
    table = spectral(corpus.train, V, E, 4, 4.0)
    lengths = np.linalg.norm(table, axis=1)
    assert 0 < lengths[20:].max() < 0.5 * lengths[1:20].mean()
    assert len(np.unique(table[20:], axis=0)) == 10


@pytest.mark.parametrize("many", [10_000, 0], ids=["few tokens", "many tokens"])
@pytest.mark.parametrize("ids", [[5, 6], [5, 5, 5], [1, 2, 3, 4]])
def test_spectral_of_hardly_any_text_is_finite(ids, monkeypatch, many):
    monkeypatch.setattr(embeddings, "MANY_TOKENS", many)
    table = spectral(stream(ids), V, E, 4, 4.0)
    assert np.isfinite(table).all()
    assert rms(table) == pytest.approx(4.0, rel=1e-5)


def test_spectral_must_be_shorter_than_the_vocabulary(corpus):
    with pytest.raises(DataError, match=r"vocabulary of 30, but setting model\.embed_dim is 30"):
        embedding_table(EmbeddingSettings(), corpus, 30, None)


@pytest.mark.parametrize("harm", ["none", "bit", "torn", "empty"])
def test_cache_is_reused_only_when_whole(tmp_path, corpus, monkeypatch, harm):
    table, mark = embedding_table(EmbeddingSettings(), corpus, E, tmp_path)
    (path,) = (tmp_path / "embeddings").iterdir()
    content = bytearray(path.read_bytes())
    if harm == "bit":
        content[-1] ^= 1
    path.write_bytes({"torn": content[:200], "empty": b""}.get(harm, content))
    calls = []
    compute = embeddings.spectral
    monkeypatch.setattr(embeddings, "spectral", lambda *args: calls.append(1) or compute(*args))
    again, same_mark = embedding_table(EmbeddingSettings(), corpus, E, tmp_path)
    assert (len(calls), same_mark) == (0 if harm == "none" else 1, mark)
    assert table.tobytes() == again.tobytes()
    embedding_table(EmbeddingSettings(window=2), corpus, E, tmp_path)
    assert len(calls) == (1 if harm == "none" else 2)
    assert len(list((tmp_path / "embeddings").iterdir())) == 2


# --- from a trained model --------------------------------------------------------------------------

WEIGHT = torch.arange(V * E, dtype=torch.float32).reshape(V, E)


@pytest.mark.parametrize(
    "name", ["wte.weight", "transformer.wte.weight", "model.embed_tokens.weight", "embedding.weight", "odd"]
)
def test_safetensors_file(tmp_path, name):
    tensors = {name: WEIGHT.bfloat16(), "ln_f.weight": torch.ones(E)}
    if name != "odd":
        tensors |= {"wpe.weight": torch.ones(4, E), "lm_head.weight": torch.ones(V, E)}
    save_file(tensors, tmp_path / "a.safetensors")
    table = pretrained(str(tmp_path / "a.safetensors"), V - 2, E)
    assert table.dtype == np.float32
    assert np.array_equal(table, WEIGHT[: V - 2].bfloat16().float().numpy())


def test_model_folders(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    save_file({"model.embed_tokens.weight": WEIGHT, "w": torch.ones(2, 2)}, whole / "model.safetensors")
    save_file({"model.embed_tokens.weight": WEIGHT}, parts / "model-2.safetensors")
    index = {
        "weight_map": {
            "model.norm.weight": "model-1.safetensors",
            "model.embed_tokens.weight": "model-2.safetensors",
        }
    }
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (whole, parts):
        assert np.array_equal(pretrained(str(folder), V, E), WEIGHT.numpy())
    (parts / "model-2.safetensors").unlink()
    with pytest.raises(DataError, match=r"lacks the file model-2\.safetensors"):
        pretrained(str(parts), V, E)


def test_transformers_model_folder(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=E, n_layer=1, n_head=1, n_positions=8))
    model.save_pretrained(tmp_path)
    expected = model.transformer.wte.weight.detach().numpy()
    settings = EmbeddingSettings(source=str(tmp_path))
    table, mark = embedding_table(settings, SimpleNamespace(vocab_size=V), E, None)
    assert np.array_equal(table, expected)
    assert mark == embedding_table(settings, SimpleNamespace(vocab_size=V), E, None)[1]


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"wte.weight": WEIGHT[:20]}, "20 rows, but the vocabulary has 30"),
        ({"wte.weight": WEIGHT[:, :5].contiguous()}, "length 5, but setting model.embed_dim is 8"),
        ({"wte.weight": WEIGHT.where(WEIGHT != 7, torch.nan)}, "not finite"),
        ({"a": WEIGHT, "b": WEIGHT + 1}, "candidates: a, b"),
        ({"encoder.embed_tokens.weight": WEIGHT, "decoder.embed_tokens.weight": WEIGHT + 1}, "candidates: "),
        ({"bias": torch.ones(3)}, "candidates: none"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors, expected):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(DataError) as caught:
        pretrained(str(tmp_path / "a.safetensors"), V, E)
    assert expected in str(caught.value)


def test_sources_that_cannot_be_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not tensors")
    for source, expected in {
        "a.safetensors": "cannot read model weights",
        "b.safetensors": "there is no model file",
        ".": "holds no model weights",
    }.items():
        with pytest.raises(DataError, match=expected):
            pretrained(str(tmp_path / source), V, E)


def test_hub_model_offline(tmp_path, monkeypatch):
    """A kept copy is used; without one, a sentence says that the hub cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    with pytest.raises(DataError, match="cannot be reached"):
        pretrained("someone/model", V, E)
    kept = tmp_path / "models--someone--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file({"wte.weight": WEIGHT}, kept / "snapshots" / ("0" * 40) / "model.safetensors")
    assert np.array_equal(pretrained("someone/model", V, E), WEIGHT.numpy())
