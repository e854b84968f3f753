"""Programs that a model is trained, adapted and served with: a few steps in each, for both cells.

They take a minute, so they run where TANDEM_EXTERNAL is set: `TANDEM_EXTERNAL=1 pytest -n 0
tests/external/test_ecosystem.py`. Packages that are not installed are skipped and named.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tandem import TandemConfig, TandemForCausalLM
from tandem.tokens.tokenizer import to_transformers

pytestmark = [
    pytest.mark.skipif("TANDEM_EXTERNAL" not in os.environ, reason="TANDEM_EXTERNAL is not set"),
    pytest.mark.filterwarnings("ignore"),
]
WORDS = ["<s>", "the", "stone", "holds", "a", "gate", "river", "winter", "and"]
TEXTS = ["the stone holds a gate", "the river and winter", "a gate", "winter holds"]
PAIRS = {
    "prompt": ["the stone", "the river"] * 2,
    "chosen": [" holds a gate", " and winter"] * 2,
    "rejected": [" a a", " the"] * 2,
}
STEPS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
}


@pytest.fixture(params=["residual", "gated"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A model folder with a tokenizer."""
    torch.manual_seed(1)
    sizes = {"vocab_size": len(WORDS), "embed_dim": 12, "context_dim": 8, "context_layers": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    TandemForCausalLM(
        TandemConfig(**sizes, token_layers=2, cell=request.param, output_bias=True, **ids)
    ).save_pretrained(tmp_path / "model")
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = Whitespace()
    to_transformers(tokenizer, "<s>").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def learnt(trainer: Any) -> None:
    """Train, and see that steps were made and weights moved."""
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 2
    moved = [n for n, weight in trainer.model.named_parameters() if not torch.equal(weight, before[n])]
    assert moved


def test_trainer(folder: str, tmp_path: Path) -> None:
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(folder),
        TrainingArguments(str(tmp_path / "out"), activation_checkpointing=True, **STEPS),
        train_dataset=[tokenizer(text) for text in TEXTS],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    learnt(trainer)
    trainer.save_model(str(tmp_path / "saved"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("packing", [False, True])
def test_trl_sft(folder: str, packing: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    more = {"packing": True, "padding_free": True, "max_length": 8} if packing else {}
    arguments = trl.SFTConfig(output_dir=str(tmp_path / "out"), bf16=False, **STEPS, **more)
    learnt(trl.SFTTrainer(folder, args=arguments, train_dataset=Dataset.from_dict({"text": TEXTS})))


@pytest.mark.parametrize("kind", ["DPO", "Reward"])
def test_trl_preferences(folder: str, kind: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    arguments = getattr(trl, f"{kind}Config")(output_dir=str(tmp_path / "out"), bf16=False, **STEPS)
    learnt(getattr(trl, f"{kind}Trainer")(folder, args=arguments, train_dataset=Dataset.from_dict(PAIRS)))


def test_trl_grpo(folder: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path / "out"), bf16=False, num_generations=2, max_completion_length=4, **STEPS
    )
    data = Dataset.from_dict({"prompt": PAIRS["prompt"]})
    reward = lambda completions, **_: [float(len(text)) for text in completions]  # noqa: E731
    trl.GRPOTrainer(folder, reward_funcs=reward, args=arguments, train_dataset=data).train()


def test_peft_on_trl(folder: str, tmp_path: Path) -> None:
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")
    arguments = trl.SFTConfig(output_dir=str(tmp_path / "out"), bf16=False, **STEPS)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    data = Dataset.from_dict({"text": TEXTS})
    learnt(trl.SFTTrainer(folder, args=arguments, train_dataset=data, peft_config=lora))


def test_accelerate_offloads_to_the_disk(folder: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, ids = TandemForCausalLM.from_pretrained(folder).eval(), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        wanted = model(ids).logits
        offloaded = accelerate.disk_offload(model, tmp_path / "offload", execution_device=torch.device("cpu"))
        torch.testing.assert_close(offloaded(ids).logits, wanted)


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tandem import TandemForCausalLM

dist.init_process_group("gloo")
model, ids = TandemForCausalLM.from_pretrained(sys.argv[1]).train(), torch.tensor([[1, 2, 3, 4]])
wanted, mesh = model(ids, labels=ids).loss.item(), init_device_mesh("cpu", (2,))
for layer in (*model.context_block.layers, *model.token_block.layers):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer, losses = torch.optim.AdamW(model.parameters(), lr=0.01), []
for _ in range(3):
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert abs(losses[0] - wanted) < 1e-5 and losses[2] < losses[0], (wanted, losses)
dist.destroy_process_group()
"""


def test_fsdp2_on_two_processes(folder: str, tmp_path: Path) -> None:
    (tmp_path / "sharded.py").write_text(SHARDED, "utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "sharded.py"), folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_sentence_transformers(folder: str) -> None:
    package = pytest.importorskip("sentence_transformers")
    model = package.SentenceTransformer(folder, device="cpu")
    both, alone = model.encode(TEXTS[:3]), model.encode(TEXTS[2:3])
    assert both.shape == (3, 12)
    assert abs(both[2] - alone[0]).max() < 1e-5
    assert model.max_seq_length == 2048


@torch.no_grad()
@pytest.mark.parametrize("boundary", ["carry", "reset"])
@pytest.mark.parametrize("cell", ["residual", "gated"])
def test_graphs(cell: str, boundary: str) -> None:
    """torch.export with any length, and one graph of torch.compile, both with a mask and a cache."""
    torch.manual_seed(1)
    config = TandemConfig(vocab_size=40, embed_dim=12, context_dim=8, num_layers=2, cell=cell)
    config.boundary, config.bos_token_id = boundary, 3
    model, inputs = TandemForCausalLM(config).eval(), []
    for batch, length in ((2, 5), (3, 8)):
        ids, mask = torch.randint(1, 40, (batch, length)), torch.ones(batch, length, dtype=torch.long)
        mask[0, :2] = mask[-1, -1] = 0
        inputs.append({"input_ids": ids, "attention_mask": mask, "use_cache": True})
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs[1]).logits, model(**inputs[1]).logits)
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = {"input_ids": any_size, "attention_mask": any_size, "use_cache": None}
    graph = torch.export.export(model, (), inputs[0], dynamic_shapes=shapes, strict=False).module()
    out, wanted = graph(**inputs[1]), model(**inputs[1])
    torch.testing.assert_close(out.logits, wanted.logits)
    torch.testing.assert_close(out.past_key_values.context, wanted.past_key_values.context)
