"""Both recipes train and score on a device of their own as on the CPU: no tensor is left behind on either."""

import json
import subprocess
from pathlib import Path

import pytest
from torch.utils import backend_registration
from warm import python

TRAINED = """
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import far_device
from blocks import train_phase1
from tandem.contexts import Stream, compute_contexts, linear
from tandem.metrics import effective_rank, score_stream
from tandem.model import TandemConfig, TandemForCausalLM, TokenBlock
from tandem.settings import ContextSettings, Phase1Settings, Phase2Settings, PredictionSettings
from tandem.training.checkpoint import Checkpoint
from tandem.training.initialization import generator_for, initialize_block
from tandem.training.phase2 import Split, train_token_block

far_device.register()
linear.ON_GPU = linear.Cut(128, 4)  # so that this text has several chunks, and they segments of segments

def stopped_and_continued(model, train):
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(Checkpoint())
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(start)
    path = Path(tempfile.mkdtemp()) / "one.safetensors"
    stopping = Checkpoint(path, {}, 0.0)
    stopping.after_step = lambda: (Checkpoint.after_step(stopping), sys.exit())
    with contextlib.suppress(SystemExit):
        train(stopping)
    model.load_state_dict(start)
    train(Checkpoint(path, {}, 0.0))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.cpu(), whole[name].cpu()), name

def trained(device, cell, boundary):
    torch.manual_seed(0)
    config = TandemConfig(
        vocab_size=40, embed_dim=8, context_dim=8, num_layers=2, cell=cell, boundary=boundary,
        output_bias=True, token_projection=True, weight_init_std=0.3 if cell == "residual" else None,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )
    model = TandemForCausalLM(config)
    for name, block in (("context_block", model.context_block), ("token_block", model.token_block)):
        initialize_block(block, model, generator_for(0, name, 2))
    model = model.to(device)
    model.tie_weights()  # which moving to a device in Python undoes
    stream = Stream.of(model, np.random.default_rng(0).integers(0, 40, 260).astype(np.uint16))
    figures = []
    if cell == "residual":
        settings = Phase1Settings(batch_positions=50, max_iterations=4, tokens_per_step=150, noise_std=0)
        more = ()
        figures += [step.loss for step in train_phase1(model, stream, settings, 0).history]
    else:
        settings = PredictionSettings(
            streams=8, window=16, max_epochs=2, negatives=20, dropout=0, embed_dropout=0, output_dropout=0
        )
        heads = [model.token_block, TokenBlock(config).to(device)]
        result = train_phase1(model, stream, settings, 0, heads, chunk_positions=64)
        more = ([model.token_block],)
        figures += [epoch.train_nll_nats for epoch in result.history]
    settings_of_phase1 = settings
    for keep in ("recompute", "memory"):
        kept = ContextSettings(segment_length=26, check_tokens=50, keep=keep)
        contexts, record = compute_contexts(model, stream, kept)
        assert record.loop_error < 1e-5
        figures.append(effective_rank(contexts))
    split = Split(stream, contexts)
    settings = Phase2Settings(batch_positions=128, max_epochs=2, shuffle=True, negatives=20)
    training = train_token_block(model, split, split, settings, 0).training
    figures += [epoch.train_nll_nats for epoch in training.history]
    trained_too = Phase2Settings(batch_positions=300, max_epochs=1)
    train_token_block(model, split, split, trained_too, 0, refresh=lambda: (split, split))
    figures.append(score_stream(model, stream, contexts, 64).nll_nats)
    ids = stream.ids[:30].reshape(2, 15)
    figures.append(float(model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss.detach()))
    generated = model.generate(ids[:, :5], max_new_tokens=6, do_sample=False).tolist()
    dropouts = {"dropout": 0.1, "embed_dropout": 0.1, "output_dropout": 0.1}  # drawn in another way on GPUs
    noisy = Phase2Settings(batch_positions=128, max_epochs=1, **dropouts)
    stopped_and_continued(
        model, lambda kept: train_token_block(model, split, split, noisy, 0, checkpoint=kept)
    )
    stopped_and_continued(
        model, lambda kept: train_phase1(model, stream, settings_of_phase1, 0, *more, checkpoint=kept)
    )
    return figures, generated

cell, boundary = sys.argv[1:]
print(json.dumps([trained(device, cell, boundary) for device in ("cpu", "far")]))
"""

MIXED = """
import torch
import far_device

far_device.register()
table = torch.ones(3, 2, device="far")
for mix in (
    lambda: table @ torch.ones(2),
    lambda: torch.nn.functional.embedding(torch.tensor([1]), table),
    lambda: torch.stack([table, torch.ones(3, 2)]),
    lambda: table.masked_fill(torch.ones(3, 2) > 0, 0.0),
    lambda: torch.ones(3, 2)[torch.tensor([0], device="far")],
    lambda: torch.ones(()).add_(table.sum()),
    lambda: torch.randn(2, device="far", generator=torch.Generator()),
    lambda: table.index_put_((torch.tensor([0]),), torch.ones(1, 2)),
):
    try:
        mix()
    except RuntimeError as error:
        print(error)
print(float((table + 1.0)[torch.tensor([0])].sum()))  # as on a GPU: a number, and positions in brackets
"""


def told(script: str, *arguments: str) -> str:
    command = [python(), "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot have a device in Python",
)


@pytest.mark.parametrize(
    ("cell", "boundary"), [pytest.param("residual", "carry", marks=pytest.mark.slow), ("gated", "reset")]
)
def test_a_device_of_its_own_trains_as_the_cpu(cell: str, boundary: str) -> None:
    (figures, generated), (figures_there, generated_there) = json.loads(told(TRAINED, cell, boundary))
    assert len(figures) > 7
    assert figures == pytest.approx(figures_there, rel=1e-5, abs=1e-5)
    assert generated == generated_there


def test_such_a_device_tells_what_was_left_on_the_cpu() -> None:
    *errors, last = told(MIXED).splitlines()
    assert len(errors) == 8
    assert all("cpu" in line.lower() for line in errors)
    assert float(last) == 4
