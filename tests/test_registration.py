"""`import tandem` alone makes the Auto classes know the model: in fresh processes, in another folder."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import tandem
from tandem import TandemConfig, TandemForCausalLM, registration

ROOT = Path(__file__).parent.parent
WORDS = ["<s>", "the", "stone", "holds", "a", "gate", "river", "winter"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder elsewhere that holds models/mine, and logits of it for ids 1, 2, 3."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(1)
    sizes = {"vocab_size": len(WORDS), "embed_dim": 12, "context_dim": 8, "context_layers": 2}
    model = TandemForCausalLM(
        TandemConfig(
            **sizes, cell="gated", output_bias=True, bos_token_id=0, eos_token_id=None, pad_token_id=0
        )
    ).eval()
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = Whitespace()
    model.save_pretrained(folder / "models" / "mine")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<s>").save_pretrained(
        folder / "models" / "mine"
    )
    save_file({"logits": model(torch.tensor([[1, 2, 3]])).logits.detach()}, folder / "expected.safetensors")
    return folder


def in_fresh_process(place: Path, code: str, program: str = sys.executable, **environment: str) -> str:
    """What the code prints in a process of its own, whose working folder is `place`; it must end well."""
    source = str(Path(tandem.__file__).parent.parent)
    if program == sys.executable:
        environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [program, "-c", code],
        cwd=place,
        env={**os.environ, "PYTHONPATH": source, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippet() -> str:
    """The Python snippet of the README that reads a model folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    return str(next(code for code in blocks if "import tandem" in code and "models/mine" in code))


SAME = """
import torch
from safetensors.torch import load_file
assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, load_file("expected.safetensors")["logits"])
assert tokenizer("the stone holds")["input_ids"] == [1, 2, 3]
"""


AUTO = "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer"
LOAD = """
model, tokenizer = (of.from_pretrained("models/mine") for of in (AutoModelForCausalLM, AutoTokenizer))
""".strip()


def test_the_snippet_of_the_readme_runs_and_the_classes_are_there_to_build_on(place: Path) -> None:
    more = """
from transformers import AutoConfig, pipeline
said = pipeline("text-generation", model="models/mine")("the stone", max_new_tokens=3)
assert said[0]["generated_text"].startswith("the stone"), said
assert type(AutoConfig.from_pretrained("models/mine")) is tandem.TandemConfig
assert type(AutoModelForCausalLM.from_config(model.config)) is tandem.TandemForCausalLM

from tandem import TandemConfig, TandemForCausalLM
model = TandemForCausalLM(TandemConfig(vocab_size=9, embed_dim=6, context_dim=4, context_layers=2))
before, embeds = torch.zeros(1, 4), model.embed(torch.tensor([3]))
after = model.context_block(before, embeds)
logits = model.lm_head(model.token_block(before, after, embeds))
assert torch.allclose(logits, model(torch.tensor([[3]])).logits[:, -1], atol=1e-6)
"""
    # The snippet alone is run by the real Python in tests/test_docs.py.
    in_fresh_process(place, snippet() + SAME + more, warm.python())


@pytest.mark.slow
def test_the_auto_classes_may_come_by_another_way(place: Path) -> None:
    """From within a module that the model needs, which is half-imported then."""
    code = f"""
import sys, tandem, transformers.quantizers
assert "transformers.models.auto.configuration_auto" in sys.modules
from transformers import AutoConfig
assert AutoConfig.from_pretrained("models/mine").model_type == "tandem"
import importlib, tandem.model.modeling_tandem
# Nothing that our modules import may import this one: it would be half-imported when they are registered.
assert "transformers.models.auto.modeling_auto" not in sys.modules
importlib.reload(tandem)
{AUTO}
{LOAD}
{SAME}
"""
    in_fresh_process(place, code)


def test_the_auto_classes_may_be_there_before_and_the_code_in_the_folder_does_without_tandem(
    place: Path, tmp_path: Path
) -> None:
    """One process imports the classes. It needs Tandem then, its child does not."""
    code = f"""
import os, sys
from transformers import dynamic_module_utils
dynamic_module_utils.HF_MODULES_CACHE = {str(tmp_path / "modules")!r}  # not the user's
{AUTO}
assert "tandem" not in sys.modules
if os.fork():
    assert os.wait()[1] == 0
    import tandem
    {LOAD}
else:
    sys.modules["tandem"] = None  # whoever imports it fails
    model = AutoModelForCausalLM.from_pretrained("models/mine", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("models/mine", trust_remote_code=True)
{SAME}
if not sys.modules["tandem"]:
    from transformers import pipeline
    of = pipeline("text-generation", model="models/mine", trust_remote_code=True)
    said = of("the stone", max_new_tokens=3)
    assert said[0]["generated_text"].startswith("the stone"), said
    model.resize_token_embeddings(9)
    model.save_pretrained({str(tmp_path / "again")!r})
"""
    in_fresh_process(place, code, warm.python(), WITHOUT_TANDEM="yes")
    assert len(load_file(tmp_path / "again" / "model.safetensors")["lm_head.bias"]) == len(WORDS) + 1
    # which holds the code again, so that others can read it in turn
    assert json.loads((tmp_path / "again" / "config.json").read_text("utf-8"))["auto_map"]
    for name in ("modeling_tandem.py", "configuration_tandem.py", "cells_tandem.py", "cell_gated.py"):
        assert (tmp_path / "again" / name).is_file()


def test_import_alone_is_quick_and_imports_neither_torch_nor_transformers(place: Path) -> None:
    code = """
import sys, time
began = time.process_time()
import tandem
print(time.process_time() - began)
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
"""
    assert min(float(in_fresh_process(place, code)) for _ in range(3)) < 0.3


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is done after the module `watched_module`, which stands for one of transformers', is imported."""
    done: list[str] = []
    (tmp_path / "watched_module.py").write_text("value = 1\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "_ONCE_IMPORTED", {"watched_module": lambda: done.append("registered")})
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "tandem" not in type(f).__module__])
    registration.register_when_imported()
    yield done
    sys.modules.pop("watched_module", None)


def test_the_module_is_as_it_would_be_without_us(watched: list[str]) -> None:
    module = importlib.import_module("watched_module")
    assert watched == ["registered"]
    assert module.__spec__ is not None
    assert type(module.__loader__).__module__.startswith("importlib") or "_frozen" in str(
        type(module.__loader__)
    )
    assert module.__spec__.loader is module.__loader__
    assert inspect.getsource(module) == "value = 1\n"
    importlib.reload(module)  # its classes are new ones
    assert watched == ["registered"] * 2
    registration.register_when_imported()  # it is there
    assert watched == ["registered"] * 3
    assert sum("tandem" in type(finder).__module__ for finder in sys.meta_path) == 1


def test_other_finders_are_asked_whether_they_stand_before_or_behind(watched: list[str]) -> None:
    asked = []

    class Other(MetaPathFinder):
        """As other import hooks do, it asks all others in turn."""

        busy = False

        def find_spec(self, fullname: str, path: object = None, target: object = None) -> object:  # noqa: ARG002
            if fullname != "watched_module" or self.busy:
                return None
            asked.append(self)
            self.busy = True
            try:
                return importlib.util.find_spec(fullname)
            finally:
                self.busy = False

    others = [Other(), Other()]
    sys.meta_path.insert(0, others[0])
    sys.meta_path.insert(2, others[1])
    module = importlib.import_module("watched_module")
    assert module.value == 1
    assert set(asked) == set(others)
    assert watched == ["registered"]
    assert PathFinder in sys.meta_path


def test_threads_that_import_at_once_find_it_registered(watched: list[str], tmp_path: Path) -> None:
    (tmp_path / "watched_module.py").write_text("import time\ntime.sleep(0.2)\nvalue = 1\n", "utf-8")
    found: list[tuple[int, int]] = []

    def use() -> None:
        module = importlib.import_module("watched_module")
        found.append((module.value, len(watched)))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(1, 1)] * 4


def test_a_module_that_fails_is_not_followed(watched: list[str], tmp_path: Path) -> None:
    (tmp_path / "watched_module.py").write_text("raise RuntimeError('broken')\n", "utf-8")
    with pytest.raises(RuntimeError, match="broken"):
        importlib.import_module("watched_module")
    assert watched == []
    (tmp_path / "watched_module.py").write_text("value = 12345\n", "utf-8")
    importlib.invalidate_caches()
    assert importlib.import_module("watched_module").value == 12345
    assert watched == ["registered"]
