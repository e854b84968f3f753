"""The command `tandem`: one function per command; what the user can mend is one sentence and exit code 2."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import to_json

from tandem.advice import in_command, named
from tandem.cli import usage
from tandem.cli.arguments import (
    AdaptArguments,
    AuditArguments,
    CompareArguments,
    CompletionArguments,
    ConfigArguments,
    DoctorArguments,
    EnsembleArguments,
    EvaluateArguments,
    ExperimentArguments,
    GenerateArguments,
    QuantizeArguments,
    ReportArguments,
    ScoreArguments,
    TrainArguments,
    option_names,
    parse,
    parse_with_preset,
)
from tandem.cli.line import no_such_command
from tandem.cli.terminal import ERR, OUT
from tandem.errors import SettingsError, TandemError, is_out_of_memory, out_of_memory, storage_reason
from tandem.launch import process_rank, processes
from tandem.objectives import OBJECTIVES, Objective
from tandem.settings import check_arguments, dump_settings, load_extensions, load_settings, preset_names
from tandem.shown import command, holds_all_text, json_for, one_line, several_lines, to_terminal
from tandem.stopping import Stopped, stopping_gently
from tandem.text.files import whole_text

# While it waits for a thread, OpenMP spins for milliseconds, which beside another busy process slows training
# down many times (measured in LOG.md). Read when torch loads; undisturbed runs are as fast with it.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

AUDIT_FAILED = 1
"""Exit code of a command that did its work, and whose audit found a figure not to be trusted."""

CONTINUED = {
    "experiment": "; the same command continues where it was: {}",
    "audit": "; the same command goes on with the runs that are left",
    **dict.fromkeys(("train", "adapt"), "; the same command continues where it was: {}"),
    "score": "; with --output, the same command goes on where it was",
}
"""What becomes of a command that was interrupted; {} is that command."""

# torch and transformers are imported by the commands that need them, so that --help answers at once.


def config(args: Sequence[str]) -> None:
    """tandem config [PRESET|FILE]"""
    if not args:
        for name in preset_names():
            OUT.say(f"{name:10} {load_settings(name).description}")
        OUT.print()
        OUT.say("`tandem config PRESET` prints all settings of one, to save and edit or to override singly.")
        return
    settings, arguments = parse_with_preset("config", ConfigArguments, args, "demo")
    if arguments.json_output:
        _write_json(json.dumps(settings.model_dump(mode="json"), ensure_ascii=False))
    else:
        text = dump_settings(settings, escaped=not holds_all_text(sys.stdout.encoding))
        hidden = to_terminal(sys.stdout) and text != several_lines(text)
        _write(dump_settings(settings, escaped=True) if hidden else text)


def experiment(args: Sequence[str]) -> None:
    """tandem experiment [PRESET|FILE]"""
    settings, arguments = parse_with_preset("experiment", ExperimentArguments, args, "demo")
    if processes() > 1:
        raise SettingsError(
            "tandem experiment trains each run in one process, so torchrun is not for it: give --workers, or "
            "train single configurations with torchrun … tandem train"
        )
    from tandem.audit import audit as audit_runs
    from tandem.claims import locked
    from tandem.cli.progress import ProgressView
    from tandem.cli.summary import print_audit_lines, print_estimate, print_summary
    from tandem.experiment.runner import estimate_experiment, run_experiment
    from tandem.report.render import write_report

    if arguments.dry_run:
        with ProgressView(ERR) as view:
            estimate = estimate_experiment(settings, view)
        _show(estimate, arguments.json_output, print_estimate)
        return
    with ProgressView(ERR) as view:
        run_dir, records = run_experiment(settings, view)
    audited, unaudited = None, None
    with locked(run_dir, "report"):  # other workers of the same experiment end here as well
        try:
            audited = audit_runs(run_dir, _tell(arguments.json_output))
        except TandemError as error:  # the report comes first; it says that nothing was audited
            unaudited = error
        report = write_report(run_dir, arguments.lang)
    if arguments.json_output:
        for record in records:
            _write_json(record.model_dump_json())
    else:
        print_summary(OUT, run_dir, arguments.lang, report)
    if audited is not None:
        print_audit_lines(ERR if arguments.json_output else OUT, audited)
    failed = [record for record in records if record.status == "failed"]
    if failed:
        raise TandemError(
            f"{len(failed)} of {len(records)} runs failed, the first one ({failed[0].run}) because: "
            f"{failed[0].failure}; the others are in the report, and the same command tries these again"
        )
    if unaudited is not None:
        raise TandemError(f"the runs are finished, but could not be audited: {unaudited}")
    if audited is not None and audited.status == "fail":
        raise SystemExit(AUDIT_FAILED)


def train(args: Sequence[str]) -> None:
    """tandem train [PRESET|FILE]"""
    settings, arguments = parse_with_preset("train", TrainArguments, args, "predictive")
    if arguments.dry_run and processes() > 1:
        raise SettingsError("--dry-run times one process, so torchrun is not for it: give it without")
    from tandem.cli.progress import ProgressView
    from tandem.cli.summary import print_estimate, print_run
    from tandem.experiment.grid import tandem_run
    from tandem.experiment.single_run import estimate_one, train_one
    from tandem.settings import Configuration, chosen_variant

    first = settings.grid[0]
    configuration = Configuration(
        arguments.context_layers or first.context_layers, arguments.token_layers or first.token_layers
    )
    run = tandem_run(configuration, arguments.seed, arguments.variant).name
    folder = Path(settings.output or Path("models") / f"{settings.name}-{run}")
    depths = (configuration.context_layers, configuration.token_layers)
    settings = chosen_variant(settings, arguments.variant).model_copy(
        update={"configurations": (depths,), "seeds": (arguments.seed,)}
    )
    if arguments.dry_run:
        with ProgressView(ERR) as view:
            estimate = estimate_one(settings, configuration, arguments.seed, folder, view)
        _show(estimate, arguments.json_output, print_estimate)
        return
    with ProgressView(ERR) as view:
        record = train_one(settings, configuration, arguments.seed, folder, view, arguments.force_new)
    if process_rank() == 0:
        _show(record, arguments.json_output, print_run, folder)


def adapt(args: Sequence[str]) -> None:
    """tandem adapt MODEL --data SOURCE"""
    arguments = parse("adapt", AdaptArguments, args)
    from tandem.cli.progress import ProgressView
    from tandem.cli.summary import print_run
    from tandem.experiment.adapting import adapted_settings
    from tandem.experiment.single_run import train_one
    from tandem.settings import DataSettings

    model, seed = arguments.model, arguments.seed
    data = DataSettings(train=arguments.data, validation=arguments.validation)
    settings, configuration = adapted_settings(model, data)
    own = {"seeds": (seed,), "device": arguments.device, "threads": arguments.threads}
    folder = Path(arguments.output or model.with_name(f"{model.name}-adapted"))
    with ProgressView(ERR) as view:
        record = train_one(
            settings.model_copy(update=own), configuration, seed, folder, view, arguments.force_new
        )
    _show(record, arguments.json_output, print_run, folder)


def evaluate(args: Sequence[str]) -> None:
    """tandem evaluate MODEL --data SOURCE"""
    arguments = parse("evaluate", EvaluateArguments, args)
    _say_what_is_awaited(arguments.data)
    _use_threads(arguments.threads)
    from tandem.cli.summary import print_evaluation
    from tandem.experiment.evaluate import evaluate_model

    result = evaluate_model(
        arguments.model,
        arguments.data,
        txt_documents=arguments.txt_documents,
        separator=arguments.separator,
        device=arguments.device,
        int8=arguments.int8,
        mix=arguments.mix,
        adapt=arguments.adapt,
        verify=arguments.verify,
        on_progress=_tell(arguments.json_output),
        on_warning=_tell(quiet=False),
    )
    _show(result, arguments.json_output, print_evaluation)


def score(args: Sequence[str]) -> None:
    """tandem score MODEL [FILE…|-]"""
    arguments = parse("score", ScoreArguments, args)
    sources = arguments.files or ("-",)
    _say_what_is_awaited(arguments.pairs or ("-" if "-" in sources else ""))
    _use_threads(arguments.threads)
    from tandem.cli.summary import print_pair_scores, print_scoring
    from tandem.scoring.files import Added, FileScoring, Limits
    from tandem.scoring.pairs import score_pairs
    from tandem.scoring.scorer import Scorer

    tell = _tell(arguments.json_output)

    def load(folder: Path) -> Scorer:
        return Scorer(folder, arguments.device, _tell(quiet=False), arguments.verify)

    if arguments.pairs is not None:
        given = arguments.model_fields_set - {"model", "pairs", "threads", "device", "verify", "json_output"}
        if given:
            names = " and ".join("files" if name == "files" else named(name) for name in sorted(given))
            raise SettingsError(f"{named('pairs')} takes none of {names}; give one or the other")
        scorer = load(arguments.model)
        _show(score_pairs(scorer, arguments.pairs, tell), arguments.json_output, print_pair_scores)
        return
    limits = Limits(arguments.min_perplexity, arguments.max_perplexity, arguments.keep_quantile)
    scorer = load(arguments.model)
    other = None if arguments.contrast is None else load(arguments.contrast)
    also = {folder.resolve().name: load(folder) for folder in arguments.also}
    if len(also) < len(arguments.also):
        raise SettingsError(f"two folders of {named('also')} have one name; rename one")
    run = FileScoring(
        scorer,
        sources,
        arguments.text_field,
        arguments.output,
        arguments.rejected,
        limits,
        Added(arguments.tokens, arguments.words, other, also),
        _JsonOutput(),
    )
    print_scoring(ERR, run.run(tell), arguments.output, arguments.rejected)


def generate(args: Sequence[str]) -> None:
    """tandem generate MODEL --prompt TEXT"""
    arguments = parse("generate", GenerateArguments, args)
    source = arguments.prompt_file or arguments.prompt
    _say_what_is_awaited(source)
    prompt = arguments.prompt
    if arguments.prompt_file or source == "-":
        prompt = whole_text(source).removesuffix("\n")
    _use_threads(arguments.threads)
    from tandem.experiment.generate import generate_text

    result = generate_text(
        arguments.model,
        prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        device=arguments.device,
        int8=arguments.int8,
        verify=arguments.verify,
        stream=not arguments.json_output,
        on_warning=_tell(quiet=False),
    )
    if arguments.json_output:
        _write_json(json.dumps(result, ensure_ascii=False))


def ensemble(args: Sequence[str]) -> None:
    """tandem ensemble MODEL MODEL…"""
    arguments = parse("ensemble", EnsembleArguments, args)
    from tandem.cli.summary import print_ensemble
    from tandem.experiment.inference import make_ensemble

    folder = arguments.model
    output = Path(arguments.output or folder.with_name(f"{folder.name}-ensemble"))
    found = make_ensemble((folder, *arguments.others), output, arguments.verify)
    _show(found, arguments.json_output, print_ensemble)


def quantize(args: Sequence[str]) -> None:
    """tandem quantize MODEL"""
    arguments = parse("quantize", QuantizeArguments, args)
    from tandem.cli.summary import print_quantized
    from tandem.experiment.inference import quantize_model

    folder = arguments.model
    copied = quantize_model(
        folder, Path(arguments.output or folder.with_name(f"{folder.name}-int8")), arguments.verify
    )
    _show(copied, arguments.json_output, print_quantized)


def audit(args: Sequence[str]) -> None:
    """tandem audit RUN_DIR|MODEL"""
    arguments = parse("audit", AuditArguments, args)
    from tandem.audit import audit as audit_runs
    from tandem.cli.summary import print_audit

    audited = audit_runs(arguments.path, _tell(arguments.json_output), quick=arguments.quick)
    _show(audited, arguments.json_output, print_audit)
    if audited.status == "fail" or (arguments.strict and audited.unchecked):
        raise SystemExit(AUDIT_FAILED)


def report(args: Sequence[str]) -> None:
    """tandem report RUN_DIR"""
    arguments = parse("report", ReportArguments, args)
    from tandem.cli.summary import print_summary
    from tandem.report.render import write_report

    files = write_report(arguments.run_dir, arguments.lang, arguments.only)
    if arguments.json_output:
        _write_json(json.dumps([str(path) for path in files], ensure_ascii=False))
    else:
        print_summary(OUT, arguments.run_dir, arguments.lang, files)


def compare(args: Sequence[str]) -> None:
    """tandem compare RUN_DIR RUN_DIR"""
    arguments = parse("compare", CompareArguments, args)
    from tandem.cli.summary import print_comparison
    from tandem.report.experiments import compare_experiments

    compared = compare_experiments(arguments.run_dir, *arguments.others)
    if arguments.json_output:
        _write_json(to_json(compared.as_json(), inf_nan_mode="null").decode())
    else:
        print_comparison(OUT, compared)


def doctor(args: Sequence[str]) -> None:
    """tandem doctor"""
    arguments = parse("doctor", DoctorArguments, args)
    from tandem.cli.summary import print_checkup
    from tandem.experiment.doctor import examine

    _show(examine(), arguments.json_output, print_checkup)


def completion(args: Sequence[str]) -> None:
    """tandem completion bash|zsh|fish"""
    arguments = parse("completion", CompletionArguments, args)
    from tandem.cli.completion import script

    _write(script(arguments.shell))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    function.__name__: function
    for function in (
        *(experiment, train, adapt, evaluate, score, generate, ensemble, quantize),
        *(audit, report, compare, config, doctor, completion),
    )
}


def run(args: Sequence[str]) -> int:
    """Run one command; returns the exit code.

    0, 1 where the audit fails, 2 for anything the user can mend, 130 and 143 (by SIGTERM) when interrupted.
    """
    try:
        load_extensions()
    except SettingsError as error:
        return _fail(str(error))
    with in_command(option_names(args[0] if args else "")):
        return _run(args)


def _run(args: Sequence[str]) -> int:
    # Both libraries would print warnings of their own between our lines.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        check_arguments(args)
        if (text := usage.answer(args)) is not None:
            _write(text)
        elif args[0] in usage.HELP:
            COMMANDS[args[1]](["--help"])
        elif args[0] in COMMANDS:
            with stopping_gently():
                COMMANDS[args[0]](args[1:])
        else:
            raise SettingsError(no_such_command(args[0], list(COMMANDS)))
        return 0
    except TandemError as error:
        return _fail(str(error))
    except BrokenPipeError:
        _drop_output()  # its reader went away (`| head`)
        return 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if error.filename is None:  # our output cannot be written, and at exit would be tried again
            _drop_output()
        return _fail(
            f"{error.filename or 'the output'}: {storage_reason(error)}{'; make room there' if full else ''}"
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = [setting for one in reversed(OBJECTIVES.values()) for setting in one.memory_settings]
        own = sorted(dict.fromkeys(found), key=Objective.memory_settings.__contains__)
        return _fail(out_of_memory(error, *own))
    except KeyboardInterrupt as stop:
        goes_on = CONTINUED.get(args[0], "").format(command("tandem", *args))
        if process_rank() == 0:
            sys.stderr.write(f"tandem: interrupted{goes_on}\n")
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0


def _drop_output() -> None:
    """Point standard output nowhere, so that the exit stays quiet."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(result: BaseModel, as_json: bool, printed: Callable[..., None], *more: object) -> None:
    """A result as JSON, or as `printed` shows it to people."""
    if as_json:
        _write_json(result.model_dump_json())
    else:
        printed(OUT, result, *more)


def _tell(quiet: bool) -> Callable[[str], None]:
    """Says what is being done, on standard error."""
    return (lambda _: None) if quiet else lambda what: ERR.say((what, "dim"))


def _write_json(text: str) -> None:
    """To standard output, whole whatever its encoding."""
    _write(json_for(sys.stdout.encoding, text, to_terminal(sys.stdout)))


def _use_threads(threads: int | None) -> None:
    """Of the CPU, for torch and for the tokenizer."""
    if threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)


def _say_what_is_awaited(source: str) -> None:
    """A command that reads from a terminal would look as if it had stopped."""
    if source == "-" and sys.stdin is not None and sys.stdin.isatty():
        ERR.say("reading standard input up to Ctrl-D")


class _JsonOutput:
    """Standard output for JSON in UTF-8, of which a terminal shows all control characters."""

    def write(self, encoded: bytes) -> int:
        """As of a binary stream."""
        if to_terminal(sys.stdout):
            encoded = json_for("utf-8", encoded.decode(), terminal=True).encode()
        return sys.stdout.buffer.write(encoded)

    def flush(self) -> None:
        """As of a binary stream."""
        sys.stdout.buffer.flush()


def _write(text: str) -> None:
    """To standard output as it is."""
    print(text.rstrip("\n"), flush=True)


def _fail(sentence: str) -> int:
    sys.stderr.write(f"tandem: error: {one_line(sentence)}\n")
    return 2
