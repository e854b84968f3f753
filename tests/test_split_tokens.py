"""Tokens that are split at random: the text stays, and so do its documents."""

import math

import numpy as np
import pytest
import torch
from blocks import block_and_stream, train_phase1
from conftest import sentences
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from tandem.contexts import Stream
from tandem.contexts.stream import Tokens
from tandem.group import PLAIN
from tandem.model import TandemForCausalLM
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.objectives.predictive import split_epochs, windows
from tandem.settings import PredictionSettings, Settings
from tandem.tokens.tokenizer import merged_pieces, train_bpe
from tandem.training.progress import silent
from tandem.training.split_tokens import split_tokens

SIZE = 290
Pieces = np.typing.NDArray[np.int32]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(sentences(80), SIZE)


@pytest.fixture(scope="module")
def pieces(tokenizer: Tokenizer) -> Pieces:
    found = merged_pieces(tokenizer, SIZE)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer) -> Stream:
    """Documents, each after the end-of-text token 0."""
    documents = [[0, *tokenizer.encode(text).ids] for text in sentences(30, seed=2)]
    starts = np.cumsum([0, *map(len, documents[:-1])])
    ids = np.concatenate([np.array(one, np.uint16) for one in documents])
    return Stream(Tokens(ids, torch.device("cpu")), None, starts)


def ids_of(stream: Stream) -> list[int]:
    found: list[int] = stream.ids[torch.arange(len(stream))].tolist()
    return found


def split(stream: Stream, pieces: Pieces, chance: float, seed: int = 0) -> Stream:
    return split_tokens(stream, pieces, chance, torch.Generator().manual_seed(seed))


def test_pieces_are_what_each_token_was_joined_from(tokenizer: Tokenizer, pieces: Pieces) -> None:
    joined = np.flatnonzero(pieces[:, 0] >= 0)
    assert len(joined) == SIZE - 257  # all but the end-of-text token and the 256 bytes
    for token in joined.tolist():
        left, right = (tokenizer.id_to_token(int(piece)) for piece in pieces[token])
        assert left + right == tokenizer.id_to_token(token)


def test_tokens_of_other_kinds_have_no_pieces() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    assert merged_pieces(words, 3) is None
    by_character = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    by_character.pre_tokenizer = pre_tokenizers.Whitespace()
    assert merged_pieces(by_character, 2) is None
    continued = Tokenizer(
        models.BPE({"a": 0, "##b": 1, "ab": 2}, [("a", "##b")], continuing_subword_prefix="##")
    )
    assert merged_pieces(continued, 4).tolist() == [[-1, -1], [-1, -1], [0, 1], [-1, -1]]  # type: ignore[union-attr]


@pytest.mark.parametrize("chance", [0.0, 0.12, 0.7, 1.0])
def test_the_text_and_its_documents_stay(
    tokenizer: Tokenizer, pieces: Pieces, stream: Stream, chance: float
) -> None:
    found = split(stream, pieces, chance)
    ids, whole = ids_of(found), ids_of(stream)
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.decode(
        whole, skip_special_tokens=False
    )
    assert found.document_starts is not None
    assert [n for n, token in enumerate(ids) if token == 0] == found.document_starts.tolist()
    if chance in (0.0, 1.0):
        assert len(ids) == len(whole) if chance == 0 else max(ids) < 257
    else:
        splits = len(ids) - len(whole)
        # Of the tokens that may be split, a share; and of their pieces again.
        count = sum(pieces[token, 0] >= 0 for token in whole)
        assert splits >= chance * count - 4 * math.sqrt(count * chance * (1 - chance))
        assert ids != ids_of(split(stream, pieces, chance, seed=1))
        assert ids == ids_of(split(stream, pieces, chance))


def test_without_known_documents_none_are_made_up(pieces: Pieces, stream: Stream) -> None:
    bare = Stream(stream.ids, 0)
    found = split(bare, pieces, 0.5)
    assert found.document_starts is None
    assert found.reset_token == 0
    assert ids_of(found) == ids_of(split(stream, pieces, 0.5))


def test_the_last_quarter_of_the_epochs_reads_whole_tokens() -> None:
    assert [split_epochs(n, 1000) for n in (1, 2, 3, 4, 8, 12)] == [0, 1, 2, 3, 6, 9]
    assert [split_epochs(12, tokens) for tokens in (400_000, 400_001)] == [9, 0]
    model, stream = block_and_stream(cell="gated", output_bias=True)
    pieces = np.full((model.config.vocab_size, 2), -1, np.int32)
    pieces[60:] = 5, 6
    own = PredictionSettings(max_epochs=4, streams=4, window=16, split_tokens=0.3)
    settings = Settings(recipe="predictive").model_copy(update={"prediction": own})
    heads = nn.ModuleDict({"head1": model.token_block})
    inputs = Phase1Inputs(model, heads, stream, settings, 0, silent, PLAIN, pieces=pieces)
    record = OBJECTIVES["predictive"].train(inputs)
    lengths = [epoch.text_tokens for epoch in record.history]  # type: ignore[attr-defined]
    assert all(length > len(stream) for length in lengths[:3])
    assert len(set(lengths)) > 2
    assert lengths[3] == len(stream)
    assert len({epoch.positions for epoch in record.history}) == 1  # type: ignore[attr-defined]


def test_no_pieces_or_no_chance_read_the_text_as_it_is() -> None:
    found = []
    for chance in (0.0, 0.5):
        model, stream = block_and_stream(cell="gated")
        own = PredictionSettings(max_epochs=2, streams=4, window=16, split_tokens=chance)
        train_phase1(model, stream, own)  # no pieces are known
        found.append(weights(model))
    assert all(map(torch.equal, *found))


def weights(model: TandemForCausalLM) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def test_a_longer_text_is_read_in_shares_of_each_stream() -> None:
    read = torch.cat(list(windows(100, 4, 7, start=3, length=20)), dim=1)
    assert read.shape == (4, 20)
    assert torch.equal(read[:, 0], torch.tensor([3, 28, 53, 78]))
    assert len(set(read.flatten().tolist())) == 80
