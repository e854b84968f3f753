"""The model within transformers: all classes, inputs of every kind, caches, states, graphs."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
)

from tandem import (
    TandemCache,
    TandemConfig,
    TandemForCausalLM,
    TandemForSequenceClassification,
    TandemForTokenClassification,
    TandemModel,
)

SIZES = {"vocab_size": 40, "embed_dim": 12, "context_dim": 8, "context_layers": 2, "token_layers": 3}


def config_of(cell: str, **more: object) -> TandemConfig:
    return TandemConfig(**{**SIZES, "cell": cell, "weight_init_std": 0.4, "pad_token_id": 0, **more})


def model_of(cell: str, **more: object) -> TandemForCausalLM:
    torch.manual_seed(1)
    return TandemForCausalLM(config_of(cell, **more)).eval()


def ids_of(*shape: int) -> Tensor:
    return torch.randint(1, 40, shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=["residual", "gated"])
def cell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def test_a_base_model_gives_states_of_every_layer_and_contexts(cell: str) -> None:
    model, ids = model_of(cell), ids_of(2, 7)
    out = model.model(ids, output_hidden_states=True, output_contexts=True)
    assert [tuple(states.shape) for states in out.hidden_states] == 4 * [(2, 7, 12)]
    assert torch.equal(out.hidden_states[0], model.embed(ids))
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert torch.equal(out.contexts, model.context_block.unroll(model.embed(ids))[1])
    assert torch.equal(model(ids).logits, model.lm_head(out.last_hidden_state))
    assert model(ids).contexts is None
    # also where logits of a few positions are wanted
    last = model(ids, logits_to_keep=2, output_hidden_states=True)
    assert (last.logits.shape, last.hidden_states[1].shape) == ((2, 2, 40), (2, 7, 12))
    torch.testing.assert_close(last.logits, model(ids).logits[:, -2:])
    assert model.get_decoder() is model.base_model is model.model


@torch.no_grad()
def test_every_class_reads_a_folder_of_today_and_of_before(cell: str, tmp_path: Path) -> None:
    model, ids = model_of(cell, output_bias=True), ids_of(2, 7)
    model.save_pretrained(tmp_path / "now")
    model.save_pretrained(tmp_path / "before")
    save_file(
        {name.removeprefix("model."): w for name, w in load_file(tmp_path / "now/model.safetensors").items()},
        tmp_path / "before/model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((tmp_path / "before/config.json").read_text("utf-8"))
    assert config["auto_map"] == {
        "AutoConfig": "configuration_tandem.TandemConfig",
        "AutoModel": "modeling_tandem.TandemModel",
        "AutoModelForCausalLM": "modeling_tandem.TandemForCausalLM",
        "AutoModelForSequenceClassification": "modeling_tandem.TandemForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_tandem.TandemForTokenClassification",
    }
    config["max_position_embeddings"] = 1 << 20
    (tmp_path / "before/config.json").write_text(json.dumps(config), "utf-8")
    wanted, state = model(ids).logits, model.model(ids).last_hidden_state
    for folder in (tmp_path / "now", tmp_path / "before"):
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert type(loaded) is TandemForCausalLM
        assert torch.equal(loaded(ids).logits, wanted)
        assert loaded.config.max_position_embeddings == 2048
        base = AutoModel.from_pretrained(folder)
        assert type(base) is TandemModel
        assert torch.equal(base(ids).last_hidden_state, state)
        for auto, kind in (
            (AutoModelForSequenceClassification, TandemForSequenceClassification),
            (AutoModelForTokenClassification, TandemForTokenClassification),
        ):
            head = auto.from_pretrained(folder, num_labels=3)
            assert type(head) is kind
            assert torch.equal(head.model(ids).last_hidden_state, state)
    base.save_pretrained(tmp_path / "base")  # a head finds its base model there
    again = TandemForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    assert torch.equal(again.model(ids).last_hidden_state, state)


def test_classifiers_read_the_last_token_and_learn(cell: str) -> None:
    torch.manual_seed(1)
    ids = ids_of(3, 6)
    padded, mask = torch.cat((ids, torch.zeros(3, 2, dtype=torch.long)), dim=1), torch.ones(3, 8).long()
    mask[:, 6:] = 0
    texts = TandemForSequenceClassification(config_of(cell, num_labels=2))
    tokens = TandemForTokenClassification(config_of(cell, num_labels=2))
    alone = texts(ids).logits
    for logits in (texts(padded).logits, texts(padded, attention_mask=mask).logits):
        torch.testing.assert_close(logits, alone)
    for model, labels in ((texts, torch.tensor([0, 1, 1])), (tokens, ids % 2)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        losses = []
        for _ in range(4):
            loss = model(ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]


@torch.no_grad()
def test_packed_sequences_do_not_read_each_other(cell: str) -> None:
    model, (a, b) = model_of(cell), ids_of(1, 11).split((6, 5), dim=1)
    packed, positions = torch.cat((a, b), dim=1), torch.cat((torch.arange(6), torch.arange(5)))[None]
    apart = torch.cat((model(a).logits, model(b).logits), dim=1)
    torch.testing.assert_close(model(packed, position_ids=positions).logits, apart)
    torch.testing.assert_close(
        model(packed, position_ids=torch.arange(11)[None]).logits, model(packed).logits
    )
    # a sequence goes on from what was read, wherever its padding and its count begin
    state, padded = model.read(a[0]), torch.cat((torch.zeros(1, 2).long(), b), dim=1)
    mask, positions = torch.tensor([[0, 0, 1, 1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 1, 2, 3, 4]])
    goes_on = model(padded, attention_mask=mask, position_ids=positions, past_key_values=copy.copy(state))
    torch.testing.assert_close(goes_on.logits[:, 2:], model(packed).logits[:, 6:])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_is_each_of_its_texts(cell: str, side: str) -> None:
    model, long, short = model_of(cell, eos_token_id=None), ids_of(1, 7), ids_of(1, 4)
    padding = torch.zeros(1, 3, dtype=torch.long)
    padded = torch.cat((padding, short) if side == "left" else (short, padding), dim=1)
    batch, mask = torch.cat((long, padded)), torch.cat((torch.ones(1, 7).long(), (padded != 0).long()))
    real = model(batch, attention_mask=mask).logits[1][mask[1] == 1]
    torch.testing.assert_close(real, model(short).logits[0])
    more = {"max_new_tokens": 5, "do_sample": False}
    out = model.generate(batch, attention_mask=mask, **more)[:, 7:]
    for row, text in zip(out, (long, short), strict=True):
        assert torch.equal(row, model.generate(text, attention_mask=torch.ones_like(text), **more)[0, -5:])


def test_checkpointing_changes_no_gradient(cell: str) -> None:
    model, ids, gradients = model_of(cell).train(), ids_of(2, 7), []
    for kwargs in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        if kwargs is not None:
            model.activation_checkpointing_enable(kwargs)
            model.enable_input_require_grads()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    assert model.is_activation_checkpointing
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient)


@torch.no_grad()
def test_a_prompt_is_read_in_pieces(cell: str) -> None:
    model, ids = model_of(cell, eos_token_id=None), ids_of(2, 9)
    lengths: list[int] = []
    model.model.register_forward_hook(
        lambda _model, _args, out: lengths.append(out.last_hidden_state.shape[1])
    )
    seen: list[int] = []
    model.context_block.register_forward_pre_hook(lambda *_: None)
    more = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False}
    whole = model.generate(ids, **more)
    model.embed_norm.register_forward_hook(lambda _norm, _args, out: seen.append(out.shape[1]))
    assert torch.equal(model.generate(ids, prefill_chunk_size=4, **more), whole)
    assert seen == [4, 4, 1, 1, 1, 1]
    assert torch.equal(model.generate(ids, past_key_values=DynamicCache(), **more), whole)


@torch.no_grad()
def test_a_recording_cache_goes_back(cell: str) -> None:
    model, ids = model_of(cell), ids_of(2, 9)
    cache = TandemCache()
    cache.activate_past_recording()
    model(ids[:, :4], past_key_values=cache, use_cache=True)
    model(ids[:, 4:], past_key_values=cache, use_cache=True)
    assert cache.is_croppable
    cache.crop(-3)
    assert cache.get_seq_length() == 6
    assert torch.equal(cache.context, model(ids[:, :6]).past_key_values.context)
    cache.crop(-6)
    assert not cache.context.any()
    with pytest.raises(ValueError, match="cropped by 1 tokens, of which 0 are recorded"):
        cache.crop(-1)


@torch.no_grad()
def test_it_assists_another_model(cell: str) -> None:
    torch.manual_seed(3)
    large = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=8, n_head=2, n_layer=1, bos_token_id=None, eos_token_id=None)
    ).eval()
    small, ids = model_of(cell, eos_token_id=None), ids_of(1, 6)
    cropped: list[int] = []
    crop = TandemCache.crop
    more = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TandemCache, "crop", lambda cache, count: (cropped.append(count), crop(cache, count)))
        assisted = large.generate(ids, assistant_model=small, **more)
    assert torch.equal(assisted, large.generate(ids, **more))
    assert any(count < 0 for count in cropped)


@torch.no_grad()
def test_a_state_is_read_once_saved_and_continued(cell: str, tmp_path: Path) -> None:
    model, ids = model_of(cell, eos_token_id=None), ids_of(2, 12)
    state = model.read(ids[:, :5])
    at_once, in_pieces = model.read(ids[:, :9]), model.read(ids[:, 5:9], state)
    torch.testing.assert_close(in_pieces.context, at_once.context)
    assert (state.tokens_before, in_pieces.tokens_before, in_pieces.get_seq_length()) == (5, 9, 0)
    words = {"input_ids": ids[0, :5].tolist()}
    read = model.read("a text", tokenizer=lambda *_text, **_options: words)
    torch.testing.assert_close(read.context, state.context[:1])
    with pytest.raises(ValueError, match="a text needs the model's tokenizer"):
        model.read("a text")
    assert model.read([]).context is None
    # on disk
    model.save_state(at_once, tmp_path / "state.safetensors")
    loaded = model.load_state(tmp_path / "state.safetensors")
    assert torch.equal(loaded.context, at_once.context)
    assert loaded.tokens_before == 9
    other = model_of(cell, boundary="reset", bos_token_id=3)
    with pytest.raises(ValueError, match="another model's"):
        other.load_state(tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="read nothing"):
        model.save_state(TandemCache(), tmp_path / "nothing.safetensors")
    # over a batch
    one, two = at_once.split()
    assert torch.equal(TandemCache.join([two, one]).context, at_once.context.flip(0))
    with pytest.raises(ValueError, match="only states that have read something"):
        TandemCache.join([one, TandemCache()])
    # scores and texts go on from it, as often as wanted
    whole = model(ids).logits
    torch.testing.assert_close(model(ids[:, 9:], past_key_values=copy.copy(loaded)).logits, whole[:, 9:])
    more = {"max_new_tokens": 4, "do_sample": False}
    text = model.generate(ids, attention_mask=torch.ones_like(ids), **more)[:, 12:]
    for _ in range(2):
        assert torch.equal(model.generate(ids[:, 9:], past_key_values=loaded, **more)[:, 3:], text)
    assert torch.equal(model.generate(ids[:1, 9:], past_key_values=one, **more)[:, 3:], text[:1])
    several = model.generate(
        ids[:, 9:], past_key_values=loaded, num_return_sequences=3, max_new_tokens=4, num_beams=3
    )
    assert several.shape == (6, 7)


@torch.no_grad()
def test_a_graph_has_any_length_and_no_branch_on_a_mask() -> None:
    """Of one cell, since making graphs takes seconds; tests/external makes all."""
    model = model_of("gated", context_layers=1, token_layers=1, boundary="reset", bos_token_id=3)
    inputs = {}
    for batch, length in ((2, 5), (3, 8)):
        ids, mask = ids_of(batch, length), torch.ones(batch, length, dtype=torch.long)
        mask[0, :2] = mask[-1, -1] = 0
        inputs[length] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {"input_ids": any_size, "attention_mask": any_size, "use_cache": None}
    graph = torch.export.export(model, (), inputs[5], dynamic_shapes=shapes, strict=False).module()
    out, wanted = graph(**inputs[8]), model(**inputs[8])
    torch.testing.assert_close(out.logits, wanted.logits)
    torch.testing.assert_close(out.past_key_values.context, wanted.past_key_values.context)
