"""Adapters of the peft library on either kind of model: what is called as a module can be wrapped."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tandem import TandemConfig, TandemForCausalLM
from tandem.model.cell_gated import GatedLayer

# peft asks transformers for an attribute by its older name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
IDS = torch.randint(1, 40, (2, 12), generator=torch.Generator().manual_seed(3))


def model_of(cell: str, output_bias: bool = True) -> TandemForCausalLM:
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "embed_dim": 12, "context_dim": 8, "context_layers": 2, "token_layers": 2}
    return TandemForCausalLM(
        TandemConfig(**sizes, cell=cell, token_projection=True, output_bias=output_bias, pad_token_id=0)
    ).eval()


@pytest.mark.parametrize("cell", ["residual", "gated"])
@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_dora": True, "bias": "all"},
        {"target_modules": ["linear", "projection"], "modules_to_save": ["embed_norm"]},
        {"target_modules": ["projection"], "modules_to_save": ["context_block"]},
    ],
    ids=["all-linear", "dora", "by-name", "block-saved"],
)
def test_adapters_train_and_come_back_from_a_folder(
    cell: str, more: dict[str, object], tmp_path: Path
) -> None:
    base = model_of(cell)
    plain = base(IDS).logits.detach()
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **more))
    torch.testing.assert_close(adapted(input_ids=IDS).logits, plain)  # an adapter starts as nothing
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.03)
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=IDS, labels=IDS).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in trained)  # each of them is read
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] > losses[1] > losses[2]

    logits = adapted.eval()(input_ids=IDS).logits.detach()
    out = adapted.generate(
        input_ids=IDS, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    forced = adapted(input_ids=out.sequences).logits[:, 11:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), forced, rtol=0, atol=1e-4)

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(model_of(cell), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, logits, rtol=0, atol=1e-4)
    merged = loaded.merge_and_unload()
    assert type(merged) is TandemForCausalLM
    torch.testing.assert_close(merged(IDS).logits, logits, rtol=0, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = TandemForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(IDS).logits, logits, rtol=0, atol=1e-4)


def test_single_tokens_are_trained_without_the_bias_of_the_head() -> None:
    """What the library leaves out there (docs/faq.md); without a bias its adapter starts as nothing."""
    for bias in (True, False):
        base = model_of("gated", output_bias=bias)
        plain, missing = base(IDS).logits.detach(), 0.0 if base.lm_head.bias is None else base.lm_head.bias
        adapted = get_peft_model(base, LoraConfig(target_modules=["projection"], trainable_token_indices=[3]))
        torch.testing.assert_close(adapted(input_ids=IDS).logits, plain - missing)


@pytest.mark.parametrize("cell", ["residual", "gated"])
@pytest.mark.parametrize("way", ["forward", "generate"])
def test_hooks_see_every_module_that_holds_weights(cell: str, way: str) -> None:
    """Of what nn.Module promises: a forward hook of a layer sees what it gives, however the model is run."""
    model = model_of(cell)
    layers = {
        name: module for name, module in model.named_modules() if any(True for _ in module.parameters(False))
    }
    layers |= {name: module for name, module in model.named_modules() if isinstance(module, GatedLayer)}
    seen = set()
    for name, module in layers.items():
        module.register_forward_hook(lambda _module, _inputs, _output, name=name: seen.add(name))
    if way == "forward":
        model(IDS)
    else:
        model.generate(IDS, max_new_tokens=2, do_sample=False)
    assert seen == set(layers)


def test_every_linear_module_is_one() -> None:
    """A subclass of nn.Linear that computes something else would be replaced by what is not the same."""
    for cell in ("residual", "gated"):
        linear = [module for module in model_of(cell).modules() if isinstance(module, nn.Linear)]
        assert {type(module).forward for module in linear} == {nn.Linear.forward}
        assert len(linear) == 7
