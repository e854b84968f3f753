"""Whether a device computes what the CPU computes: scans, both phases of both recipes, scores, generation.

The same small model is drawn, read, trained and asked for text on both. Dropout and phase 1's noise are off,
since their random numbers are the device's own.
"""

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from measuring import SMALL
from speed.inputs import CONTEXTS, random_model, zipf_ids
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tandem.contexts import Stream, compute_contexts
from tandem.group import PLAIN, Execution
from tandem.metrics import score_stream
from tandem.model import TandemConfig, TandemForCausalLM
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.records import Phase1Record
from tandem.settings import Settings, load_settings
from tandem.training.phase2 import Split, train_token_block
from tandem.training.progress import OnTick, Tick, silent

from .results import PartResults, Target

VOCABULARY, WIDTH, DEPTH = (60, 16, 2) if SMALL else (1_000, 64, 2)
SCANNED_TOKENS, TRAINED_TOKENS, PROMPT = (2_000, 800, 5) if SMALL else (70_000, 8_000, 16)
"""More than two chunks of the linear scan on a GPU; and text for a few steps of each phase."""
NEW_TOKENS, BATCH = (6, 2) if SMALL else (32, 4)
NO_DROPOUT = {"dropout": 0.0, "embed_dropout": 0.0, "output_dropout": 0.0}
CHANGES: dict[str, dict[str, object]] = {
    "phase1": {"batch_positions": TRAINED_TOKENS // 4, "max_iterations": 8, "noise_std": 0.0},
    "prediction": {"streams": 8, "window": 32, "max_epochs": 1, "negatives": 16, **NO_DROPOUT},
    "phase2": {"batch_positions": TRAINED_TOKENS // 8, "max_epochs": 1, "shuffle": True, **NO_DROPOUT},
}
"""What makes the presets' trainings a few steps."""
TOLERANCES = {"contexts": 2e-5, "scoring": 1e-4, "generation": 0.0, "bf16": 2e-2, "phase": 1e-3}
"""Of figures by the start of their names. Contexts of either device may be off by 1e-5. A first step of Adam
has the size of its rate wherever the gradient is not zero, so trainings drift apart by more than rounding."""
PROCESSES_TOLERANCE = 1e-4


def correctness(device: torch.device, results: PartResults) -> None:
    """The largest difference of each figure, relative to the CPU's where that is above 1."""
    for recipe in ("original", "predictive"):
        exact = figures(recipe, torch.device("cpu"))
        for name, found in figures(recipe, device).items():
            reference = exact[name]
            difference = ((found - reference).abs() / reference.abs().clamp(min=1)).max()
            tolerance = next(limit for start, limit in TOLERANCES.items() if name.startswith(start))
            results.add(
                f"{recipe}: {name}, difference from the CPU", float(difference), "", Target(tolerance)
            )
    for name, difference in distributed_differences(device).items():
        results.add(f"one process of a group: {name}", difference, "", Target(PROCESSES_TOLERANCE))


def settings_of(recipe: str) -> Settings:
    """The recipe's preset, with sizes and steps of this check."""
    settings = load_settings(recipe)
    sections = {name: getattr(settings, name).model_copy(update=changes) for name, changes in CHANGES.items()}
    shape = {"embed_dim": WIDTH, "context_dim": WIDTH}
    if settings.model.weight_init_std is not None:  # of the original's width; this one is narrower
        shape["weight_init_std"] = 0.3
    sections["model"] = settings.model.model_copy(update=shape)
    sections["phase2"] = sections["phase2"].model_copy(update={"start": "random"})
    return settings.model_copy(update={"contexts": CONTEXTS, **sections})


def model_of(settings: Settings, vocabulary: int, layers: int, device: torch.device) -> TandemForCausalLM:
    """A model of the settings' sizes, with so many layers in either block."""
    config = TandemConfig(vocab_size=vocabulary, num_layers=layers, **settings.model.model_dump())
    torch.manual_seed(0)  # from which the head's bias is drawn
    return random_model(config, device)


def train_phase1(
    model: TandemForCausalLM,
    stream: Stream,
    settings: Settings,
    execution: Execution = PLAIN,
    on_tick: OnTick = silent,
) -> Phase1Record:
    """By the objective of the settings' recipe, with heads as it wants them."""
    objective = OBJECTIVES[settings.recipe]
    heads = objective.new_heads(
        settings, lambda depth: model_of(settings, model.config.vocab_size, depth, model.device).token_block
    )
    return objective.train(Phase1Inputs(model, heads, stream, settings, 0, on_tick, execution))


def figures(recipe: str, device: torch.device) -> dict[str, Tensor]:
    """What is compared, by name: any shape, float64 on the CPU."""
    settings = settings_of(recipe)
    model = model_of(settings, VOCABULARY, DEPTH, device)
    stream = Stream.of(model, zipf_ids(SCANNED_TOKENS, VOCABULARY))
    found: dict[str, Tensor] = {}
    for keep in ("recompute", "memory"):
        kept = settings.contexts.model_copy(update={"keep": keep})
        contexts, record = compute_contexts(model, stream, kept)
        assert record.method != "loop", "this block has no scan here"
        found[f"contexts, scan `{model.context_block.scan}` ({keep})"] = contexts.whole()
    chunk = settings.phase2.chunk_positions
    found["scoring, NLL of each token"] = torch.from_numpy(
        score_stream(model, stream, contexts, chunk).losses
    )
    prompts = stream.ids[: BATCH * PROMPT].reshape(BATCH, PROMPT)
    found["generation, tokens"] = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    short = stream.first(TRAINED_TOKENS)
    found["phase 1, each step"] = told(lambda tick: train_phase1(model, short, settings, on_tick=tick))
    split = Split(short, compute_contexts(model, short, settings.contexts)[0])
    for name, bfloat16 in (("phase 2, each step", False), ("bf16 phase 2, each step", True)):
        execution = Execution(bfloat16=bfloat16)
        new = model_of(
            settings, VOCABULARY, DEPTH, device
        )  # the TokenBlock starts anew, the rest was trained
        new.load_state_dict(
            {
                name: value
                for name, value in model.named_weights().items()
                if not name.startswith("token_block.")
            },
            strict=False,
        )
        found[name] = told(
            lambda tick, new=new, execution=execution: train_token_block(
                new, split, split, settings.phase2, 0, on_tick=tick, execution=execution
            )
        )
    return {name: value.detach().double().cpu() for name, value in found.items()}


def told(train: Callable[[OnTick], object]) -> Tensor:
    """The first figure of every step that a training tells of, [steps]."""
    values: list[float] = []

    def on_tick(tick: Tick) -> None:
        values.append(next(iter(tick.figures.values())))

    train(on_tick)
    return torch.tensor(values, dtype=torch.float64)


def distributed_differences(device: torch.device) -> dict[str, float]:
    """What a group of this process alone changes: gradients through DDP, and sums that are to change nothing.

    By nccl on CUDA, else by gloo; no network is used.
    """
    settings = settings_of("predictive")
    model = model_of(settings, VOCABULARY, DEPTH, device)
    ids = torch.from_numpy(zipf_ids(BATCH * PROMPT, VOCABULARY)).reshape(BATCH, PROMPT).to(device)
    alone = _gradients(model, model, ids)
    import_module("torch.distributed.nn.functional")  # before there is a group: see tandem/group.py
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = (Path(folder) / "store").as_uri()
        distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            together = _gradients(model, DistributedDataParallel(model), ids)
            numbers = torch.arange(100.0, device=device)
            summed, sent = numbers.clone(), numbers.clone()
            distributed.all_reduce(summed)
            distributed.broadcast(sent, 0)
        finally:
            distributed.destroy_process_group()
    largest = max(float(value.abs().max()) for value in alone)
    apart = max(float((a - b).abs().max()) for a, b in zip(alone, together, strict=True))
    return {
        f"gradients through DDP ({backend}), difference": apart / largest,
        f"sums and broadcasts ({backend}), difference": float(
            ((summed - numbers).abs() + (sent - numbers).abs()).max()
        ),
    }


def _gradients(model: TandemForCausalLM, called: nn.Module, ids: Tensor) -> list[Tensor]:
    """Of all parameters, where `called` is the model or wraps it."""
    model.zero_grad()
    called(input_ids=ids, labels=ids).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
