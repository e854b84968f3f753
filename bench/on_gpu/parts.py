"""What bench/gpu.py measures, a function a part. Each gets the device and where its figures go."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measuring import SMALL, byte_size, interleaved, number, start, timed
from speed.decoding import Generation, made_up_texts
from speed.inputs import CONTEXTS, zipf_ids
from speed.original import (
    CONFIGURATIONS,
    DEPTHS,
    FEW_TOKENS,
    ORIGINAL,
    TOKENS,
    C,
    E,
    Measured,
    OriginalScale,
    V,
    measure_limits,
    phase_name,
)
from speed.training import CONFIGURATION
from tokenizers import Tokenizer
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile
from wikitext import RECIPE, perplexity_by_words, settings_for, tokens_of

from tandem.contexts import Contexts, Stream, compute_contexts
from tandem.errors import TandemError
from tandem.experiment.machine import PeakMemory, choose_device, environment, uses_bfloat16
from tandem.experiment.pipeline import new_heads
from tandem.experiment.prepared import TrainingInputs, new_model, prepare
from tandem.experiment.single_run import train_one
from tandem.group import Execution
from tandem.objectives import OBJECTIVES, Phase1Inputs
from tandem.objectives.predictive import PredictionRecord
from tandem.settings import Configuration, load_settings
from tandem.training.progress import Tick, Watcher, silent

from .correctness import correctness, model_of, settings_of, train_phase1
from .results import PartResults, Results, Target

SCALE_TOKENS = FEW_TOKENS if SMALL else TOKENS
EPOCHS = 2
"""Of phase 2 at the original's size: the second one is without what the first is slow for."""
ALL_S, CONTEXTS_S, MATMUL_SHARE = 60.0, 1.0, 0.5
"""The targets: seconds of the whole experiment and of contexts, and phase 2's share of the rate in bf16."""
TRAINING_S, AFTER_EPOCHS_S = 180.0, 15.0
"""Of a training on WikiText-2; and of it what is left for contexts, scores and saving."""
PROBE_TOKENS = 2_000 if SMALL else 131_072
BATCHES, POSITION, STEPS, ROUNDS = ((1, 3), 8, 2, 1) if SMALL else ((1, 64, 1024), 64, 64, 3)
PROFILED_TOKENS = 1_000 if SMALL else 200_000
PROFILED_ITERATIONS, PROFILED_STEPS, PROFILED_WINDOWS = (
    ((1, 2, 3),) * 3 if SMALL else ((1, 3, 5), (9, 19, 29), (4, 8, 12))
)
"""Which iterations of phase 1, steps of phase 2, and windows of `predictive` are timed and profiled. They are
few: to read a profile takes a tenth of a millisecond an event, and an operation is some five of them."""
TOP = 15
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
"""How calls that start something on a GPU begin."""


@dataclass(frozen=True)
class Given:
    """What the command line gives to the parts; `wikitext`: the folder of WikiText-2, if there is one."""

    device: torch.device
    folder: Path
    wikitext: Path | None


def run_part(name: str, device: str, folder: Path, wikitext: Path | None) -> None:
    """One part, its figures into the results of a folder.

    Raises SettingsError for a device that is not there. Any other error is written down, and raised.
    """
    start(None)
    results = Results.read(folder)
    part = results.part(name)
    try:
        given = Given(choose_device(device), folder, wikitext)
        if results.values["machine"] is None:
            bfloat16 = uses_bfloat16("auto", given.device)
            results.values["machine"] = environment(given.device, bfloat16).model_dump(mode="json")
            results.values["judged"] = given.device.type == "cuda" and not SMALL
        own, memory = PartResults(results, name), PeakMemory(given.device)
        PARTS[name](given, own)
        own.add_peak(memory.read())
        part["status"] = "done"
    except Exception as error:
        sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "" if isinstance(error, TandemError) else f"{type(error).__name__}: "
        part |= {"status": "failed", "reason": kind + sentence}
        raise
    finally:
        results.save()


def _correctness(given: Given, results: PartResults) -> None:
    correctness(given.device, results)


def original(given: Given, results: PartResults) -> None:
    """The four configurations at the original's sizes, and contexts of a gated block of the same sizes."""
    limits = measure_limits(given.device)
    for precision, rate in limits.flop_per_s.items():
        results.add(f"products of matrices, {precision}", rate / 1e12, "TFLOP/s")
    results.add("copies", limits.bytes_per_s / 1e9, "GB/s")

    def tell(measured: Measured) -> None:
        target = Target(CONTEXTS_S) if measured.phase == "contexts" else None
        memory = "" if measured.peak_bytes is None else f"peak {byte_size(measured.peak_bytes)}"
        epochs = "" if measured.epoch_s is None else f"{EPOCHS} epochs"
        note = ", ".join(filter(None, (epochs, measured.note, memory)))
        name = phase_name(measured.phase, measured.configuration)
        results.add(name, measured.seconds_s, "s", target, note)
        results.add_peak(measured.peak_bytes)
        if measured.epoch_s is not None:
            rate = measured.work.flop / measured.epoch_s
            share = rate / limits.flop_per_s[measured.work.precision]
            name = f"{name}, share of the rate in {measured.work.precision}"
            note = f"{number(rate / 1e12)} TFLOP/s, an epoch {number(measured.epoch_s)} s"
            results.add(name, share, "%", Target(MATMUL_SHARE, least=True), note)

    scale = OriginalScale(given.device, SCALE_TOKENS, tell, epochs=EPOCHS)
    failed: list[Exception] = []
    for layers in DEPTHS:
        try:
            scale.run_depth(layers)
        except Exception as error:  # the other depth may have more luck
            failed.append(error)
    if not failed:
        _totals(scale, results)
    _gated_contexts(given, scale, results)
    for error in failed:
        raise error


def _totals(scale: OriginalScale, results: PartResults) -> None:
    """Of four configurations that share phase 1 and contexts by depth, as the package does."""
    shared = sum(m.seconds_s for m in scale.results if m.phase in ("phase 1, literal", "contexts"))
    own = [m for m in scale.results if m.phase == "phase 2"]
    seconds, epochs = sum(m.seconds_s for m in own), sum(m.epoch_s or 0.0 for m in own)
    most = ORIGINAL.phase2.max_epochs
    measured = f"{len(own)} configurations, phase 1, contexts and {EPOCHS} epochs of phase 2"
    results.add(measured, shared + seconds, "s", Target(ALL_S))
    projected = f"the same with {most} epochs, the most that the preset allows (projected)"
    results.add(projected, shared + seconds + (most - EPOCHS) * epochs, "s", Target(ALL_S))


def _gated_contexts(given: Given, scale: OriginalScale, results: PartResults) -> None:
    settings = load_settings("predictive")
    sizes = settings.model.model_copy(update={"embed_dim": E, "context_dim": C})
    model = model_of(settings.model_copy(update={"model": sizes}), V, 2, given.device)
    stream, memory = Stream.of(model, scale.ids), PeakMemory(given.device)
    kept = CONTEXTS.model_copy(update={"keep": "memory"})
    seconds = timed(lambda: compute_contexts(model, stream, kept))
    results.add(
        "C2 gated, contexts", seconds, "s", Target(CONTEXTS_S), f"{len(stream):,} tokens, linear scan"
    )
    results.add_peak(memory.read())


def training(given: Given, results: PartResults) -> None:
    """Recipe `predictive` on WikiText-2 by words, for as many epochs as the time allows."""
    assert given.wikitext is not None
    settings = settings_for(given.wikitext, given.folder)
    settings = OBJECTIVES[settings.recipe].for_one_run(settings, CONFIGURATION.token_layers)
    settings = settings.model_copy(update={"device": str(given.device), "threads": None, "precision": "auto"})
    began = time.perf_counter()
    prepared = prepare(settings, lambda what: print(f"  {what}", flush=True))
    tokens = len(prepared.corpus.train)
    epoch_s = _epoch_s(prepared)
    left = TRAINING_S - AFTER_EPOCHS_S - (time.perf_counter() - began)
    most = settings.prediction.max_epochs
    epochs = max(1, min(most, int(left / epoch_s) - settings.phase2.max_epochs))
    note = f"the recipe has {RECIPE['prediction']['max_epochs']}; one was to take {number(epoch_s)} s"
    results.add("epochs of phase 1", epochs, "", None, note)

    prediction = settings.prediction.model_copy(update={"max_epochs": epochs})
    settings = settings.model_copy(update={"prediction": prediction})
    model_folder = given.folder / time.strftime("model-%Y%m%d-%H%M%S")
    began = time.perf_counter()
    record = train_one(settings, CONFIGURATION, 0, model_folder, _Throughput(results, tokens))
    results.add("training, with reading and saving", time.perf_counter() - began, "s")
    results.add_peak(record.peak_memory_bytes)
    assert record.phase1 is not None
    assert record.phase2 is not None
    assert record.contexts is not None
    assert record.validation is not None
    results.add("phase 1", epochs * tokens / record.phase1.seconds_s, "tokens/s")
    results.add("phase 2", record.phase2.epochs * tokens / record.phase2.seconds_s, "tokens/s")
    results.add("contexts", record.contexts.seconds_s, "s", None, "training and validation text")
    vocabulary = Tokenizer.from_file(settings.tokenizer.source).get_vocab_size()
    perplexity = perplexity_by_words(
        record.validation.nll_nats, tokens_of(settings, "valid"), "valid", vocabulary
    )
    results.add("validation perplexity by words", perplexity)


def _epoch_s(prepared: TrainingInputs) -> float:
    """Seconds of an epoch of phase 1 over the whole text, by the second of two over a part of it."""
    settings = prepared.settings
    prediction = settings.prediction.model_copy(update={"max_epochs": 2})
    model = new_model(prepared, CONFIGURATION, 0)
    heads = new_heads(prepared, CONFIGURATION.context_layers, 0)
    stream = Stream.of(model, prepared.corpus.train.ids[:PROBE_TOKENS])
    settings = settings.model_copy(update={"prediction": prediction})
    inputs = Phase1Inputs(model, heads, stream, settings, 0, silent, prepared.execution)
    record = OBJECTIVES[settings.recipe].train(inputs)
    assert isinstance(record, PredictionRecord)
    first, second = (epoch.seconds_s for epoch in record.history)
    return (second - first) * len(prepared.corpus.train) / len(stream)


class _Throughput(Watcher):
    """Writes down how fast phase 1 is, whenever an epoch ends: what is left of a training that is stopped."""

    def __init__(self, results: PartResults, tokens: int) -> None:
        self._results, self._tokens = results, tokens
        self._began, self._epochs = time.perf_counter(), 0

    def run_started(self, run: str) -> None:  # noqa: ARG002
        """Phase 1 begins."""
        self._began = time.perf_counter()

    def tick(self, tick: Tick) -> None:
        """One figure an epoch."""
        if tick.phase == "phase 1" and int(tick.done) > self._epochs:
            self._epochs = int(tick.done)
            rate = self._epochs * self._tokens / (time.perf_counter() - self._began)
            perplexity = f"epoch {self._epochs}, train PPL {number(tick.figures['train PPL'])}"
            self._results.add("phase 1", rate, "tokens/s", None, perplexity)


def decoding(given: Given, results: PartResults) -> None:
    """Greedy steps of the preset `predictive`, for one text and for many side by side."""
    settings = load_settings("predictive")
    vocabulary = settings.tokenizer.vocab_size
    model = model_of(settings, vocabulary, 2, given.device)
    with torch.inference_mode():
        runs = {batch: Generation(model, made_up_texts(model, batch, POSITION), STEPS) for batch in BATCHES}
        timings = interleaved({str(batch): run.candidate(batch) for batch, run in runs.items()}, ROUNDS)
    parameters = model.num_params()["total"]
    for batch in BATCHES:
        note = f"{model.config.name} of {parameters:,} parameters, float32, {STEPS} tokens, {ROUNDS} rounds"
        results.add(f"decoding, batch {batch:,}", 1e9 / timings.ns(str(batch)), "tokens/s", None, note)


def profiles(given: Given, results: PartResults) -> None:
    """What the slowest phase at the original's size spends its time on, and phase 1 of `predictive`."""
    figures = Results.read(given.folder).part("original")["figures"]
    measured = {figure["name"]: figure["value"] or 0.0 for figure in figures}
    phases = {phase_name("phase 2", one): partial(_profile_phase2, one) for one in CONFIGURATIONS}
    for layers in DEPTHS:
        depth = Configuration(layers)
        phases[phase_name("phase 1, literal", depth)] = partial(_profile_phase1, layers)
        phases[phase_name("contexts", depth)] = partial(_profile_contexts, layers)
    # What was not measured comes last; phase 2 before all if nothing was.
    slowest = max(phases, key=lambda name: measured.get(name, 0.0))
    for name, run in (("predictive, phase 1", _profile_prediction), (slowest, phases[slowest])):
        run(given.device).tell(name, results)


def _profile_phase1(layers: int, device: torch.device) -> "StepProfile":
    steps = StepProfile(device, PROFILED_ITERATIONS)
    OriginalScale(
        device, PROFILED_TOKENS, lambda _: None, 1 + PROFILED_ITERATIONS[-1], on_tick=steps.tick
    ).phase1(layers)
    return steps


def _profile_contexts(layers: int, device: torch.device) -> "StepProfile":
    steps = StepProfile(device, (1, 2, 3))
    scale = OriginalScale(device, SCALE_TOKENS, lambda _: None)
    model = scale.model(Configuration(layers))
    for _ in range(3):
        scale.contexts(layers, model)
        steps.tick()
    return steps


def _profile_phase2(configuration: Configuration, device: torch.device) -> "StepProfile":
    steps = StepProfile(device, PROFILED_STEPS)
    scale = OriginalScale(
        device, PROFILED_TOKENS, lambda _: None, epochs=3 if SMALL else 1, on_tick=steps.tick
    )
    made_up = torch.randn(PROFILED_TOKENS, C, device=device)
    scale.phase2(configuration, scale.model(configuration), Contexts.of(made_up))
    return steps


def _profile_prediction(device: torch.device) -> "StepProfile":
    settings = settings_of("predictive") if SMALL else load_settings("predictive")
    settings = OBJECTIVES["predictive"].for_one_run(settings, CONFIGURATION.token_layers)
    own, vocabulary = settings.prediction, settings.tokenizer.vocab_size
    model = model_of(settings, vocabulary, CONFIGURATION.token_layers, device)
    ids = zipf_ids((1 + PROFILED_WINDOWS[-1]) * own.streams * own.window, vocabulary)
    steps = StepProfile(device, PROFILED_WINDOWS)
    execution = Execution(bfloat16=uses_bfloat16("auto", device))
    train_phase1(model, Stream.of(model, ids), settings, execution, steps.tick)
    return steps


class StepProfile:
    """Some steps of a training, timed, and as many again under torch's profiler, which slows them down."""

    def __init__(self, device: torch.device, marks: tuple[int, int, int]) -> None:
        """Timing begins after so many steps, profiling after the second number, and ends after the third."""
        assert marks[2] - marks[1] == marks[1] - marks[0]
        self._marks, self._on_cuda, self._steps = marks, device.type == "cuda", 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_cuda else [])]
        self._profiler = profile(activities=activities)
        self._began = self._seconds = 0.0

    def tick(self, _: Tick | None = None) -> None:
        """A step has ended."""
        self._steps += 1
        if self._steps in self._marks and self._on_cuda:
            torch.cuda.synchronize()
        first, second, last = self._marks
        if self._steps == first:
            self._began = time.perf_counter()
        elif self._steps == second:
            self._seconds = time.perf_counter() - self._began
            self._profiler.start()
        elif self._steps == last:
            self._profiler.stop()

    def tell(self, name: str, results: PartResults) -> None:
        """Share of the time the GPU computes, launches, and the operations that take most of it."""
        _, second, last = self._marks
        assert self._steps >= last, f"{name} had {self._steps} steps only"
        count = last - second
        results.add(f"{name}: a step", self._seconds / count, "s", None, f"{count} steps, without profiler")
        found = self._profiler.key_averages()
        operations = {one.key: one for one in found if one.device_type == DeviceType.CPU}
        taken = {key: self._taken(one) for key, one in operations.items()}
        if self._on_cuda:
            kernels = [
                one
                for one in found
                if one.device_type != DeviceType.CPU and not getattr(one, "is_user_annotation", False)
            ]
            busy = sum(one.self_device_time_total for one in kernels) / 1e6
            results.add(f"{name}: GPU busy", busy / self._seconds, "%", None, "kernels and copies")
            launches = sum(one.count for key, one in operations.items() if key.startswith(LAUNCHES))
            note = f"{number(launches / count)} a step, {number(1e6 * busy / max(1, launches))} µs each"
            results.add(f"{name}: kernel launches", launches, "", None, note)
        total = sum(taken.values()) or 1.0
        rows = [
            [key, f"{operations[key].count:,}", number(taken[key] / 1000), f"{taken[key] / total:.1%}"]
            for key in sorted(taken, key=taken.__getitem__, reverse=True)[:TOP]
        ]
        where = "GPU" if self._on_cuda else "CPU"
        head = ("operation", "calls", f"ms on the {where}", "share of all")
        results.add_table(f"{name}: {count} steps, {number(1000 * self._seconds)} ms", head, rows)

    def _taken(self, operation: FunctionEventAvg) -> float:
        """Microseconds of its own on the device."""
        return operation.self_device_time_total if self._on_cuda else operation.self_cpu_time_total


PARTS: dict[str, Callable[[Given, PartResults], None]] = {
    "correctness": _correctness,
    "original": original,
    "training": training,
    "decoding": decoding,
    "profile": profiles,
}
"""By the names of bench/gpu.py, which has the order and the limits."""
