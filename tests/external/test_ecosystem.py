"""Programs that a model is trained, adapted and served with: a few steps in each, for both cells.

They take a minute, so they run where TANDEM_EXTERNAL is set: `TANDEM_EXTERNAL=1 pytest -n 0
tests/external/test_ecosystem.py`. Packages that are not installed are skipped and named.
"""

import json
import math
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace

import tandem
from tandem import TandemConfig, TandemForCausalLM
from tandem.experiment.evaluate import evaluate_model
from tandem.scoring.pairs import score_pairs
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
    """A model folder with a tokenizer of words."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = Whitespace()
    return saved(request.param, tokenizer, tmp_path / "model")


@pytest.fixture(params=["residual", "gated"])
def byte_folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A model folder whose tokens are bytes, so that they give back any text."""
    characters = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({character: number for number, character in enumerate(characters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    return saved(request.param, tokenizer, tmp_path / "model")


def saved(cell: str, tokenizer: Tokenizer, folder: Path) -> str:
    torch.manual_seed(1)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "embed_dim": 12, "context_dim": 8, "context_layers": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = TandemConfig(**sizes, token_layers=2, cell=cell, output_bias=True, **ids)
    TandemForCausalLM(config).save_pretrained(folder)
    to_transformers(tokenizer, "<s>").save_pretrained(folder)
    return str(folder)


def offline(place: Path) -> dict[str, str]:
    """The environment of a program that may not ask the network, nor know this source."""
    package = str(Path(tandem.__file__).parent.parent)
    return {
        **os.environ,
        **{"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place / "home")},
        "PYTHONPATH": package,
    }


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


LAUNCHED = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer
from transformers import TrainingArguments

folder, output, processes = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
arguments = TrainingArguments(
    output, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no"
)
assert arguments.world_size == int(processes), arguments.world_size
trainer = Trainer(
    model,
    arguments,
    train_dataset=[tokenizer(text) for text in ["the stone holds a gate", "the river and winter"] * 4],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
assert trainer.state.global_step == 2
trainer.save_model(output)
weights = torch.cat([weight.detach().ravel() for weight in model.parameters()])
assert all(torch.equal(weights, each) for each in trainer.accelerator.gather(weights[None]))
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_accelerate_launch(folder: str, processes: str, tmp_path: Path) -> None:
    """Two processes have gloo between them: `--cpu` starts one only, and the script keeps to the CPU."""
    pytest.importorskip("accelerate")
    (tmp_path / "launched.py").write_text(LAUNCHED, "utf-8")
    kind = "--cpu" if processes == "1" else "--multi_gpu"
    launch = [sys.executable, "-m", "accelerate.commands.launch", kind, "--num_processes", processes]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    output = tmp_path / "out"
    done = subprocess.run(
        [*launch, *plain, str(tmp_path / "launched.py"), folder, str(output), processes],
        env=offline(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = (TandemForCausalLM.from_pretrained(place) for place in (folder, output))
    assert not torch.equal(before.embedding.weight, after.embedding.weight)


SERVE = """
import tandem, transformers
transformers.TandemForCausalLM = tandem.TandemForCausalLM
from transformers.cli.transformers import app
app()
"""
"""It serves classes that stand in the package itself, and no others."""


def test_transformers_serve(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", folder, "--device", "cpu", "--port", str(port)],
        env=offline(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    asked = urllib.request.Request(
        f"http://localhost:{port}/v1/completions",
        json.dumps({"model": folder, "prompt": "the stone", "max_tokens": 4}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        answer = None
        while answer is None:
            assert server.poll() is None, server.communicate()[1]
            try:
                with urllib.request.urlopen(asked) as response:
                    answer = json.load(response)
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionRefusedError):
                    raise
                time.sleep(0.5)
        scorer = tandem.load(folder)
        model, tokenizer = scorer.model, scorer.tokenizer
        ids = tokenizer("the stone", return_tensors="pt").input_ids
        wanted = tokenizer.decode(model.generate(ids, max_new_tokens=4)[0, 2:], skip_special_tokens=True)
        assert answer["choices"][0]["text"] == wanted
    finally:
        server.terminate()
        server.wait()


def harness_task(name: str, rows: list[dict[str, Any]], place: Path, **more: Any) -> None:
    """A task file of the evaluation harness, with its data beside it."""
    data = place / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (place / f"{name}.yaml").write_text(json.dumps({**task, "test_split": "test", **more}), "utf-8")


def test_evaluation_harness(byte_folder: str, tmp_path: Path) -> None:
    """lm_eval as it is: every kind of task, with the batches that it finds itself."""
    pytest.importorskip("lm_eval")
    drawn = random.Random(1)
    sentence = lambda: " ".join(drawn.choices(WORDS[1:], k=drawn.randint(3, 9)))  # noqa: E731
    place, text = tmp_path / "tasks", " ".join(sentence() for _ in range(40))
    place.mkdir()
    pairs = [{"sentence_good": sentence(), "sentence_bad": sentence()} for _ in range(60)]
    choices = [{"question": sentence(), "choices": [sentence(), "a", "the"], "answer": 0} for _ in range(8)]
    rolling = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    harness_task(
        *("rolling", [{"text": text}], place),
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=rolling,
    )
    harness_task(
        *("pairs", pairs, place),
        output_type="multiple_choice",
        target_delimiter="",
        doc_to_text="",
        doc_to_target=0,
        doc_to_choice="{{[sentence_good, sentence_bad]}}",
        metric_list=[{"metric": "acc"}],
    )
    harness_task(
        *("choice", choices, place),
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_target="answer",
        doc_to_choice="choices",
        metric_list=[{"metric": "acc"}],
    )
    harness_task(
        *("generation", choices, place),
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{choices[0]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    run = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "auto"]
    tasks = ["--tasks", "rolling,pairs,choice,generation", "--include_path", str(place)]
    output = ["--output_path", str(tmp_path / "results")]
    done = subprocess.run(
        [*run, "--model_args", f"pretrained={byte_folder},trust_remote_code=True", *tasks, *output],
        env=offline(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "results").rglob("results_*.json")
    results = json.loads(found.read_text("utf-8"))["results"]
    assert results.keys() == {"rolling", "pairs", "choice", "generation"}

    (tmp_path / "text.txt").write_text(text, "utf-8")
    own = evaluate_model(Path(byte_folder), str(tmp_path / "text.txt"), device="cpu")
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(own.bits_per_byte, rel=1e-4)
    words = math.log(results["rolling"]["word_perplexity,none"]) * len(text.split())
    assert words == pytest.approx(own.nll_nats * (own.tokens - 1), rel=1e-4)
    scored = score_pairs(tandem.load(byte_folder), str(place / "pairs.jsonl"), lambda _: None)
    assert results["pairs"]["acc,none"] == scored.overall.accuracy
    assert 0 < scored.overall.accuracy < 1


def test_minicons(byte_folder: str) -> None:
    package = pytest.importorskip("minicons.scorer")
    found = package.IncrementalLMScorer(byte_folder, "cpu").token_score(TEXTS, bos_token=True, surprisal=True)
    scorer = tandem.load(byte_folder)
    for text, tokens in zip(TEXTS, found, strict=True):
        wanted = [token.nll_nats for token in scorer.tokens(text)]
        assert [value for _, value in tokens][1:] == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_surprisal(byte_folder: str) -> None:
    """It takes the end-of-text token out of every distribution, as that pads."""
    package = pytest.importorskip("surprisal")
    found = package.AutoHuggingFaceModel.from_pretrained(byte_folder, "causal").surprise(TEXTS)
    scorer = tandem.load(byte_folder)
    for text, one in zip(TEXTS, found, strict=True):
        ids = torch.tensor([[0, *scorer.tokenizer(text)["input_ids"]]])
        logits = scorer.model(ids).logits[0, :-1]
        logits[:, 0] = -math.inf
        wanted = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
        assert one.surprisals[: len(wanted)].tolist() == pytest.approx(wanted, abs=1e-4)
