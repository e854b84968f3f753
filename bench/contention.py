"""How much a second busy process slows training down, for several settings of OpenMP's waiting.

    python bench/contention.py

Each figure is one epoch of phase 2 on 20,000 random tokens (V 4,096, E 192, C 120, C1T2), the median of three
in a process of its own, alone and beside a second process that does the same. Ratios are to the first row's
undisturbed time, all measured in this one run. About two minutes on 2 cores.
"""

import os
import statistics
import subprocess
import sys
import time

from tandem.shown import tolerate_any_encoding

SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"GOMP_SPINCOUNT": "1000"},
    {"GOMP_SPINCOUNT": "10000"},
    {"OMP_WAIT_POLICY": "passive"},
)


def epochs() -> list[float]:
    """Seconds of three epochs, after one to warm up."""
    import torch

    from tandem.contexts import Contexts, Stream
    from tandem.model import TandemConfig, TandemForCausalLM
    from tandem.settings import Phase2Settings
    from tandem.training.phase2 import Split, train_token_block

    torch.manual_seed(0)
    config = TandemConfig(vocab_size=4096, embed_dim=192, context_dim=120, token_layers=2)
    model = TandemForCausalLM(config).eval()
    stream, contexts = Stream.of(model, torch.randint(4096, (20_000,))), torch.randn(20_000, 120)
    train, validation = (
        Split(stream, Contexts.of(contexts)),
        Split(stream.first(2000), Contexts.of(contexts[:2000])),
    )
    settings = Phase2Settings(max_epochs=1, batch_positions=512, shuffle=True)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        train_token_block(model, train, validation, settings, seed=0)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def measure(setting: dict[str, str], processes: int) -> float:
    """Median seconds of an epoch in the slowest of so many processes at once."""
    environment = {k: v for k, v in os.environ.items() if k not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    command = [sys.executable, __file__, "--worker"]
    running = [
        subprocess.Popen(command, env=environment | setting, stdout=subprocess.PIPE, encoding="utf-8")
        for _ in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    return max(statistics.median(float(part) for part in output.split()) for output in outputs)


def main() -> None:
    if sys.argv[1:] == ["--worker"]:
        print(*epochs())
        return
    base = None
    print(f"{'setting':26}{'alone':>10}{'beside a second':>18}")
    for setting in SETTINGS:
        alone, beside = measure(setting, 1), measure(setting, 2)
        base = base or alone
        name = ", ".join(f"{key}={value}" for key, value in setting.items()) or "as OpenMP comes"
        print(f"{name:26}{alone / base:>9.2f}x{beside / base:>17.2f}x", flush=True)
    print(f"1x is {base:.2f} s")


if __name__ == "__main__":
    tolerate_any_encoding()
    main()
