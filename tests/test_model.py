"""The Hugging Face model: sizes, which context is read, state, generation, saving."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from tandem import TandemCache, TandemConfig, TandemForCausalLM
from tandem.contexts import Stream, compute_contexts
from tandem.model import modeling_tandem, sequential_contexts
from tandem.model.cell_gated import linear_recurrence
from tandem.settings import ContextSettings

# SPEC section 1, with the seed's sizes
TOTALS = {
    (1, 1): (635_500, 976_128, 40_210_540),
    (2, 1): (1_271_000, 976_128, 40_846_040),
    (1, 2): (635_500, 1_952_256, 41_186_668),
    (2, 2): (1_271_000, 1_952_256, 41_822_168),
}


def model_of(context_layers: int = 2, token_layers: int = 3, **more: object) -> TandemForCausalLM:
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "embed_dim": 12, "context_dim": 8, "weight_init_std": 0.4}
    depths = {"context_layers": context_layers, "token_layers": token_layers}
    return TandemForCausalLM(TandemConfig(**{**sizes, **depths, **more})).eval()


@pytest.fixture(params=["residual", "gated"])
def cell(request: pytest.FixtureRequest) -> str:
    """Both kinds of ContextBlock, for what must hold of either."""
    return str(request.param)


@pytest.mark.parametrize("depths", TOTALS)
def test_parameter_totals_of_the_seed(depths: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = TandemForCausalLM(TandemConfig(context_layers=depths[0], token_layers=depths[1]))
    counts = model.num_params()
    assert (counts["context_block"], counts["token_block"], counts["total"]) == TOTALS[depths]
    assert sum(p.numel() for p in model.parameters()) == counts["total"]  # the tied head adds none


def test_num_layers_sets_both_depths() -> None:
    config = TandemConfig(num_layers=2)
    assert (config.context_layers, config.token_layers, config.name) == (2, 2, "C2T2")
    assert TandemConfig(context_layers=3).depths == (3, 1)
    config.token_layers = 3
    assert TandemConfig.from_dict(config.to_dict()).depths == (2, 3)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_layers": 2, "token_layers": 1}, "num_layers=2"),
        ({"context_layers": 0}, "context_layers=0"),
        ({"embed_dim": 0}, "embed_dim=0"),
        ({"context_layers": 1.5}, "context_layers"),
        ({"cell": "lstm"}, "cell='lstm'"),
        ({"cell": "gated", "context_dim": 9, "context_layers": 2}, "shared evenly by 2 gated layers"),
        ({"boundary": "sometimes"}, "boundary='sometimes'"),
        ({"boundary": "reset"}, "bos_token_id"),
    ],
)
def test_impossible_configurations_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TandemConfig(**wrong)


@pytest.mark.parametrize(("depth", "reads"), [(1, "c"), (2, "pc"), (3, "p-c"), (4, "p--c")])
def test_each_token_layer_reads_its_context(depth: int, reads: str) -> None:
    model = model_of(1, depth)
    previous, current = torch.randn(1, 8), torch.randn(1, 8).exp()
    read: list[torch.Tensor | None] = []
    for layer in model.token_block.layers:
        layer.register_forward_pre_hook(lambda _layer, inputs: read.append(inputs[0]))
    embeds = torch.randn(1, 12)
    before = model.token_block(previous, current, embeds)
    given = {"p": previous, "c": current, "-": None}
    assert all(context is given[letter] for context, letter in zip(read, reads, strict=True))

    # and it makes a difference: changing just that context changes the output
    assert not torch.equal(model.token_block(previous, current + 1, embeds), before)
    assert torch.equal(model.token_block(previous + 1, current, embeds), before) == (depth == 1)


def test_no_logit_depends_on_later_tokens(cell: str) -> None:
    model = model_of(cell=cell)
    ids = torch.randint(40, (1, 12))
    changed = ids.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 40
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("boundary", ["carry", "reset"])
def test_generation_equals_teacher_forcing(cell: str, boundary: str) -> None:
    model = model_of(cell=cell, boundary=boundary, bos_token_id=3, eos_token_id=None, pad_token_id=3)
    ids = torch.randint(4, 40, (3, 9))
    ids[:, 4] = 3
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=10,
        do_sample=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    forced = model(out.sequences).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), forced, rtol=0, atol=1e-5)
    state = out.past_key_values.context
    assert state.shape == (3, 8)  # it has not grown, nor does it hold on to contexts read with it
    assert state.untyped_storage().nbytes() == state.nbytes


def test_a_stream_can_be_cut_anywhere(cell: str) -> None:
    model = model_of(cell=cell)
    ids = torch.randint(40, (2, 11))
    first = model(ids[:, :5], use_cache=True)
    rest = model(ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), dim=1), model(ids).logits)
    assert rest.past_key_values.get_seq_length() == 11
    state = rest.past_key_values.context
    assert state.untyped_storage().nbytes() == state.nbytes
    with pytest.raises(ValueError, match="cannot be cropped"):
        rest.past_key_values.crop(1)


def test_a_cache_does_what_caches_of_transformers_do(cell: str) -> None:
    model = model_of(cell=cell)
    ids = torch.randint(40, (2, 5))
    cache = TandemCache()
    assert (len(cache), bool(cache), cache.batch_size, cache.has_previous_state()) == (0, False, -1, False)
    assert cache.get_mask_sizes(3, 0) == (3, 0)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
    assert (len(cache), bool(cache), cache.batch_size, cache.has_previous_state(0)) == (1, True, 2, True)
    assert cache.get_mask_sizes(3, 0) == (cache.get_query_offset() + 3, 0) == (8, 0)
    assert (cache.get_max_length(), cache.is_compileable, cache.is_croppable) == (-1, False, False)
    assert cache.context is not None
    for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(copied.context, cache.context)
        assert copied.get_seq_length() == 5
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.context[0], cache.context[1])
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert cache.batch_size == 2
    cache.reset()
    assert (len(cache), cache.get_seq_length(), cache.is_initialized) == (0, 0, False)
    # an empty one of the usual kind stands for none; one that holds something cannot hold a context
    other = DynamicCache()
    assert torch.equal(model(ids, past_key_values=other).logits, model(ids).logits)
    other.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), 0)
    with pytest.raises(ValueError, match="a DynamicCache, which cannot hold a context"):
        model(ids, past_key_values=other)


def test_a_configuration_has_the_names_that_tools_read(tmp_path: Path) -> None:
    config = TandemConfig(hidden_size=6, num_hidden_layers=3, context_dim=4)
    assert (config.embed_dim, config.depths) == (6, (1, 3))
    config.hidden_size = 8
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert (read.hidden_size, read.embed_dim, read.num_hidden_layers, read.token_layers) == (8, 8, 3, 3)
    assert read.get_text_config() is read
    assert not hasattr(read, "num_attention_heads")


def test_padding_freezes_the_state(cell: str) -> None:
    model = model_of(cell=cell)
    ids = torch.randint(40, (2, 6))
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), ids), dim=1)
    mask = torch.cat((torch.zeros(2, 3), torch.ones(2, 6)), dim=1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 3:], model(ids).logits)


def test_padding_with_the_token_that_starts_documents_freezes_too(cell: str) -> None:
    model = model_of(cell=cell, boundary="reset", bos_token_id=0, pad_token_id=0)
    ids = torch.tensor([[0, 5, 6]])
    padded, mask = torch.tensor([[0, 5, 6, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    ends = [model(ids, use_cache=True), model(padded, attention_mask=mask, use_cache=True)]
    assert torch.equal(*(end.past_key_values.context for end in ends))
    with pytest.raises(ValueError, match="needs input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 12))


def test_beam_search_moves_states_with_their_beams(cell: str) -> None:
    model = model_of(cell=cell, eos_token_id=None, pad_token_id=0)
    ids = torch.randint(40, (2, 5))
    more = {"attention_mask": torch.ones_like(ids), "num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    out = model.generate(ids, return_dict_in_generate=True, output_scores=True, **more)
    assert torch.equal(model.generate(ids, use_cache=False, **more), out.sequences)
    logs = model(out.sequences).logits.log_softmax(-1)[:, 4:-1]
    picked = logs.gather(-1, out.sequences[:, 5:, None])[..., 0].sum(-1) / 6
    torch.testing.assert_close(out.sequences_scores, picked, rtol=0, atol=1e-4)


def test_reset_makes_documents_independent(cell: str) -> None:
    model = model_of(cell=cell, boundary="reset", bos_token_id=0)
    a, b = torch.randint(1, 40, (6,)), torch.randint(1, 40, (7,))
    start = torch.zeros(1, dtype=torch.long)
    both = model(torch.cat((start, a, start, b))[None]).logits[0]
    torch.testing.assert_close(both[7:], model(torch.cat((start, b))[None]).logits[0])


@torch.no_grad()
def test_a_projection_follows_gelu_and_nothing_else_changes() -> None:
    config = TandemConfig(vocab_size=9, embed_dim=6, context_dim=4, token_projection=True)
    layer = TandemForCausalLM(config).token_block.layers[0]
    context, x = torch.randn(3, 4), torch.randn(3, 6)
    inner = torch.nn.functional.gelu(layer.linear(torch.cat((context, x), dim=-1)))
    expected = torch.nn.functional.layer_norm(x + inner @ layer.projection.weight.t(), (6,))
    torch.testing.assert_close(layer(context, x), expected)
    layer.projection.weight.copy_(torch.eye(6))
    plain = TandemForCausalLM(TandemConfig(vocab_size=9, embed_dim=6, context_dim=4)).token_block.layers[0]
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "projection" not in k})
    torch.testing.assert_close(layer(context, x), plain(context, x))


def test_labels_and_logits_to_keep() -> None:
    model = model_of()
    ids = torch.randint(40, (2, 8))
    out = model(ids, labels=ids)
    manual = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, manual)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, out.logits[:, -2:])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_saved_and_loaded_gives_identical_logits(cell: str, tmp_path: Path) -> None:
    model = model_of(cell=cell, boundary="reset", bos_token_id=0, output_bias=cell == "gated")
    model.save_pretrained(tmp_path)
    ids = torch.randint(40, (2, 8))
    loaded = TandemForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.embedding.weight
    automatic = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(automatic(ids).logits, model(ids).logits)
    # what travels with a model imports nothing of Tandem but its neighbours
    files = {path.name for path in tmp_path.glob("*.py")}
    here = Path(modeling_tandem.__file__).parent
    assert files == {path.name for path in here.glob("*[a-z]_[a-z]*.py")} - {"ensemble_tandem.py"}
    for name in files:
        source = (tmp_path / name).read_text("utf-8")
        assert "from tandem" not in source
        assert "import tandem" not in source


def test_the_scan_reads_the_same_model_as_forward(cell: str) -> None:
    model = model_of(2, 2, cell=cell)
    ids = torch.randint(40, (700,))
    settings = ContextSettings(segment_length=64, check_tokens=256, tolerance=1e-4)
    contexts, _ = compute_contexts(model, Stream.of(model, ids), settings)
    with torch.no_grad():
        last = model(ids[None], use_cache=True).past_key_values.context[0]
    torch.testing.assert_close(contexts.whole()[-1], last, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_new_model_starts_with_the_weights_of_the_specification() -> None:
    """Also when made directly: transformers passes over custom modules without parameters of their own."""
    model = TandemForCausalLM(TandemConfig(vocab_size=40, embed_dim=48, context_dim=32, weight_init_std=0.5))
    for layer in (model.context_block.layers[0], model.token_block.layers[0]):
        assert float(layer.linear.weight.std()) == pytest.approx(0.5, rel=0.1)
        assert float(layer.linear.bias.std()) < 0.05
    assert float(model.embedding.weight.std()) == pytest.approx(1.0, rel=0.1)
    gated = TandemForCausalLM(
        TandemConfig(vocab_size=40, embed_dim=48, context_dim=32, cell="gated", weight_init_std=None)
    )
    layer = gated.context_block.layers[0]
    assert float(layer.linear.weight.std()) == pytest.approx(48**-0.5, rel=0.1)
    torch.testing.assert_close(layer.linear.bias[:32], torch.linspace(-2, 4, 32))


@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_in_a_loop_is_forward_bit_for_bit(cell: str, depth: int) -> None:
    """Values and gradients; where a module is another one or is watched, `forward` itself is called."""
    block = model_of(depth, 1, cell=cell).context_block
    start, embeds = torch.randn(3, 8), torch.randn(20, 3, 12, requires_grad=True)

    def results(step: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        context = start
        for embed in embeds:
            context = step(context, embed)
        return [context, *torch.autograd.grad(context.square().sum(), [embeds, *block.parameters()])]

    step = block.loop_step()
    assert step is not block
    assert all(map(torch.equal, results(step), results(block)))

    for module in (block, block.layers[-1], block.layers[-1].linear):
        hook = module.register_forward_hook(lambda *_: None)
        assert block.loop_step() is block
        hook.remove()

    class Another(nn.Linear):
        """What an adapter or rounded weights put in the place of a layer."""

    block.layers[-1].linear.__class__ = Another
    assert block.loop_step() is block


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_gated_block_unrolled_is_its_steps(depth: int) -> None:
    """Values and gradients, with documents that restart the context and padding that freezes it."""
    block = model_of(depth, 1, cell="gated", context_dim=12).context_block.double()
    embeds = torch.randn(3, 20, 12, dtype=torch.float64, requires_grad=True)
    start = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    restart, frozen = torch.rand(2, 3, 20) < 0.15
    wanted = [embeds, start, *block.parameters()]
    weights = torch.randn(2, 3, 20, 12, dtype=torch.float64)
    results = []
    for contexts in (
        block.unroll(embeds, start, restart, frozen),
        sequential_contexts(block, embeds, start, restart, frozen),
    ):
        loss = (torch.stack(contexts) * weights).sum()
        results.append((*contexts, *torch.autograd.grad(loss, wanted)))
    for ours, defined in zip(*results, strict=True):
        torch.testing.assert_close(ours, defined)


def test_the_linear_recurrence_has_the_gradients_of_its_definition() -> None:
    keep, add = torch.rand(2, 5, 3, 2, dtype=torch.float64)
    inputs = (keep.requires_grad_(), add.requires_grad_(), torch.randn(3, 2).double().requires_grad_())
    assert torch.autograd.gradcheck(linear_recurrence, inputs)


def test_dropout_between_gated_layers_reaches_the_upper_ones_only() -> None:
    block = model_of(2, 1, cell="gated").context_block
    embeds = torch.randn(2, 30, 12)
    with torch.no_grad():
        plain, dropped = block.unroll(embeds)[1], block.unroll(embeds, drop=torch.nn.functional.dropout)[1]
    assert torch.equal(plain[..., :4], dropped[..., :4])
    assert not torch.equal(plain[..., 4:], dropped[..., 4:])
