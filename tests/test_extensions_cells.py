"""A cell from outside the package: one class, one registry line, and nothing else."""

from pathlib import Path

import pytest
import torch
from conftest import PREDICTIVE, merged, tiny
from torch import Tensor, nn

from tandem import TandemConfig, TandemForCausalLM
from tandem.audit import audit
from tandem.contexts import Stream, compute_contexts, measure_memory
from tandem.errors import SettingsError
from tandem.experiment.evaluate import evaluate_model
from tandem.experiment.prepared import prepare
from tandem.experiment.runner import run_experiment
from tandem.model import CELLS, ContextBlock, sequential_contexts
from tandem.report.render import write_report
from tandem.settings import ContextSettings
from tandem.training.progress import Watcher


class ElmanBlock(ContextBlock):
    """c' = tanh(W·[c; e] + b), layer after layer (Elman 1990)."""

    def __init__(self, config: TandemConfig) -> None:
        size = config.context_dim + config.embed_dim
        super().__init__(config, (nn.Linear(size, config.context_dim) for _ in range(config.depths[0])))

    def forward(self, context: Tensor, token_embeds: Tensor) -> Tensor:
        """One step: context [..., C] before the token, token_embeds [..., E] → context after it."""
        for layer in self.layers:
            context = layer(torch.cat((context, token_embeds), dim=-1)).tanh()
        return context


class SquareBlock(ElmanBlock):
    """One that cannot have every size."""

    @classmethod
    def check_config(cls, config: TandemConfig) -> None:
        if config.context_dim != config.embed_dim:
            raise ValueError(f"context_dim={config.context_dim} must be embed_dim, for `square`")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry line, for as long as a test lasts."""
    monkeypatch.setitem(CELLS, "elman", lambda: ElmanBlock)
    monkeypatch.setitem(CELLS, "square", lambda: SquareBlock)


def model_of(**more: object) -> TandemForCausalLM:
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "embed_dim": 12, "context_dim": 8, "context_layers": 2, "token_layers": 2}
    return TandemForCausalLM(
        TandemConfig(**{**sizes, "cell": "elman", "weight_init_std": None, "pad_token_id": 0, **more})
    ).eval()


ELMAN = {"model": {"cell": "elman", "weight_init_std": None}, "configurations": ((2, 2),), "seeds": (0,)}


@pytest.mark.parametrize("recipe", [{}, PREDICTIVE], ids=["original", "predictive"])
def test_it_trains_to_records_a_report_and_a_passing_audit(
    recipe: dict[str, object], text_file: Path, tmp_path: Path
) -> None:
    settings = tiny(text_file, **merged(merged(recipe, ELMAN), {"output": str(tmp_path / "run")}))
    run_dir, (record,) = run_experiment(settings, Watcher())
    assert record.status == "finished"
    assert record.contexts is not None
    assert record.contexts.train.method == "scan"
    assert record.contexts.train.loop_error <= 1e-5
    assert write_report(run_dir)
    found = audit(run_dir)
    failed = [check for run in found.runs for check in run.checks if check.status == "fail"]
    assert not failed
    scored = evaluate_model(run_dir / "models" / record.run, str(text_file))
    assert scored.nll_nats > 0


def test_its_model_saves_loads_and_generates(tmp_path: Path) -> None:
    model = model_of()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    ids = torch.randint(1, 40, (2, 9))
    loaded, said = TandemForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded.context_block) is ElmanBlock
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    out = loaded.generate(
        ids, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    forced = model(out.sequences).logits[:, 8:-1]
    torch.testing.assert_close(torch.stack(out.logits, dim=1), forced, rtol=0, atol=1e-5)


@pytest.mark.parametrize("boundary", ["carry", "reset"])
@pytest.mark.parametrize("keep", ["memory", "recompute"])
def test_its_contexts_are_those_of_the_loop(boundary: str, keep: str) -> None:
    model = model_of(boundary=boundary, bos_token_id=0)
    stream = Stream.of(model, torch.randint(40, (3000,)))
    contexts, record = compute_contexts(model, stream, ContextSettings(segment_length=200, keep=keep))
    assert (record.method, record.segments) == ("scan", 15)
    restart = None if stream.resets is None else stream.resets[:][None]
    with torch.no_grad():
        exact = sequential_contexts(model.context_block, model.embed(stream.ids[:])[None], reset_mask=restart)
    assert float((contexts.whole() - exact[1][0]).abs().max()) <= 1e-5
    assert measure_memory(model, stream)[0].change > 0


def test_a_size_that_a_cell_cannot_have_is_one_sentence(text_file: Path) -> None:
    with pytest.raises(ValueError, match="context_dim=8 must be embed_dim"):
        model_of(cell="square")
    settings = tiny(text_file, model={"cell": "square", "context_dim": 16, "embed_dim": 24})
    with pytest.raises(SettingsError, match=r"context_dim = 16 must be embed_dim.*; choose other sizes"):
        prepare(settings, lambda _: None)
    assert prepare(tiny(text_file, model={"cell": "square", "context_dim": 24}), lambda _: None)


def test_an_unknown_cell_is_one_sentence(text_file: Path) -> None:
    says = r"^setting model.cell = 'lstm' is not possible: it must be 'residual', 'gated'(,| or) 'elman'"
    with pytest.raises(SettingsError, match=says):
        tiny(text_file, model={"cell": "lstm"})
