"""The float64 cases of every definition in the specification, to 1e-9."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tandem.training.phase1 import oacd_loss
from torch import Tensor

from tandem.contexts import Contexts, Stream, compute_contexts, jacobi_sweep
from tandem.metrics import convergence_rate, effective_rank, score_stream
from tandem.model import TandemConfig, TandemForCausalLM, sequential_contexts
from tandem.settings import ContextSettings


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), double(theirs), rtol=0, atol=1e-9)


@torch.no_grad()
def model_of(case: dict[str, Any]) -> TandemForCausalLM:
    sizes = {key: value for key, value in case["shape"].items() if key != "num_tokens"}
    model = TandemForCausalLM(TandemConfig(**sizes)).double().eval()
    model.embedding.weight.copy_(double(case["embedding"]))
    model.embed_norm.weight.copy_(double(case["embed_norm"]["weight"]))
    model.embed_norm.bias.copy_(double(case["embed_norm"]["bias"]))
    for name in ("context_block", "token_block"):
        for layer, given in zip(getattr(model, name).layers, case[name], strict=True):
            layer.linear.weight.copy_(double(given["weight"]))
            layer.linear.bias.copy_(double(given["bias"]))
            layer.norm.weight.copy_(double(given["norm_weight"]))
            layer.norm.bias.copy_(double(given["norm_bias"]))
    return model


@pytest.mark.parametrize("number", range(5))
@torch.no_grad()
def test_every_definition(shared: Path, number: int) -> None:
    case = json.loads((shared / "oracle" / "vectors.json").read_text("utf-8"))[number]
    expected = case["expected"]
    model = model_of(case)
    ids = torch.tensor(case["token_ids"])
    stream = Stream.of(model, ids)

    contexts = sequential_contexts(model.context_block, model.embed(ids)[None])[1][0]
    close(contexts, expected["sequential_contexts"])
    close(
        compute_contexts(model, stream, ContextSettings(method="loop"))[0].whole(),
        expected["sequential_contexts"],
    )

    iterate = double(expected["jacobi_start"])
    for theirs in expected["jacobi_iterates"]:
        sweep = jacobi_sweep(model.context_block, iterate, lambda at: model.embed(ids[at]), batch=5)
        iterate = torch.cat([new for _, new in sweep])
        close(iterate, theirs)
    close(oacd_loss(iterate), expected["oacd_loss_of_iterate_3"])

    second, third = (double(values) for values in expected["jacobi_iterates"][1:])
    at_median = expected["convergence_rate_at_median_threshold"]
    close((third - second).square().mean(dim=-1), expected["mse_between_iterates_2_and_3"])
    assert convergence_rate(second, third, at_median["threshold"]) == pytest.approx(
        at_median["rate"], abs=1e-9
    )
    rank = effective_rank(contexts) * model.config.context_dim
    assert rank == pytest.approx(expected["effective_rank_of_sequential_contexts"], abs=1e-9)

    close(model(ids[None]).logits[0], expected["logits"])
    score = score_stream(model, stream, Contexts.of(contexts), chunk_positions=4)
    assert score.nll_nats == pytest.approx(expected["mean_nll"], abs=1e-9)
    assert score.perplexity == pytest.approx(expected["perplexity"], rel=1e-9)
    assert score.accuracy == pytest.approx(expected["accuracy"], abs=1e-9)
