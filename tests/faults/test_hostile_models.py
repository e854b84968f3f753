"""Model folders of strangers: refused before anything is built of them; no code of theirs runs."""

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sentences
from transformers import AutoModelForCausalLM

from tandem import TandemConfig, TandemForCausalLM
from tandem.cli.main import run
from tandem.decoding import WHOLE_BYTES
from tandem.errors import DataError, RunDirError
from tandem.model.configuration_tandem import LARGEST
from tandem.model_folder import checking
from tandem.model_folder.loading import load_model
from tandem.tokens.embeddings import pretrained
from tandem.tokens.tokenizer import load_tokenizer, to_transformers, train_bpe

SIZES = {"embed_dim": 8, "context_dim": 6, "context_layers": 2, "token_layers": 1}
EVIL = 'open("pwned", "w").close()\n'
Header = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as `save_pretrained` leaves it; what it predicts does not matter."""
    folder = tmp_path_factory.mktemp("model") / "m"
    tokenizer = train_bpe(sentences(20), 260)
    torch.manual_seed(0)
    sizes: Any = {**SIZES, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    TandemForCausalLM(TandemConfig(vocab_size=260, **sizes)).save_pretrained(folder)
    to_transformers(tokenizer, "<|endoftext|>").save_pretrained(folder)
    load_model(folder)
    return folder


@pytest.fixture
def folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil. Nothing is asked of the network, and nothing may be written beside it."""

    def unasked(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", unasked)
    monkeypatch.setattr(socket, "getaddrinfo", unasked)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "f")
    return tmp_path / "f"


def configured(folder: Path, **values: object) -> None:
    """config.json with these values."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


def weighted(folder: Path, change: Callable[[Header], None] = lambda _: None, more: bytes = b"") -> None:
    """The weights with a changed header, and with `more` after them."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :] + more)


def tensor(header: Header, name: str = "model.embedding.weight") -> dict[str, Any]:
    found: dict[str, Any] = header[name]
    return found


def one_name_more(header: Header) -> None:
    end = max(found["data_offsets"][1] for name, found in header.items() if name != "__metadata__")
    header["model.more"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


def many_names(header: Header) -> None:
    end = max(found["data_offsets"][1] for name, found in header.items() if name != "__metadata__")
    header |= {f"n{n}": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for n in range(200_000)}


def other_width(header: Header) -> None:
    found = tensor(header)
    found["shape"] = found["shape"][::-1]


def pickled(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


def indexed(folder: Path, part: object) -> None:
    """Weights of which an index says that all lie in this part."""
    names = [name for name in header_of(folder) if name != "__metadata__"]
    (folder / "model.safetensors").rename(folder.parent / "out.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, part)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def header_of(folder: Path) -> Header:
    content = (folder / "model.safetensors").read_bytes()
    found: Header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    return found


def replaced(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()


def vocabulary(folder: Path, number: object) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    values["model"]["vocab"]["far"] = number
    path.write_text(json.dumps(values), "utf-8")


def header_length(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"{size} of a billion": (lambda f, size=size: configured(f, **{size: 10**9}), f"config.json: {size}=")
        for size in LARGEST
    },
    "more layers than tensors": (
        lambda f: configured(f, token_layers=1000),
        "config.json names 1,002 layers",
    ),
    "one layer more": (lambda f: configured(f, token_layers=2), "missing keys in model.safetensors"),
    "one layer less": (lambda f: configured(f, context_layers=1), "unexpected keys in model.safetensors"),
    "wide contexts": (lambda f: configured(f, context_dim=10**6), "mismatched keys in model.safetensors"),
    "a large vocabulary": (lambda f: configured(f, vocab_size=10**7), "mismatched keys in model.safetensors"),
    "negative layers": (lambda f: configured(f, token_layers=-1), "config.json: token_layers=-1"),
    "layers that are a text": (lambda f: configured(f, token_layers="many"), "config.json: "),
    "layers that are a list": (lambda f: configured(f, token_layers=[1]), "config.json: "),
    "another cell": (lambda f: configured(f, cell="evil"), "config.json: cell='evil'"),
    "gated": (lambda f: configured(f, cell="gated"), "model.safetensors"),
    "8 bits": (lambda f: configured(f, int8=True), "model.safetensors"),
    "no number": (lambda f: configured(f, layer_norm_eps=float("nan")), "config.json: layer_norm_eps"),
    "labels": (lambda f: configured(f, num_labels=10**9), "config.json: num_labels"),
    "not tied": (lambda f: configured(f, tie_word_embeddings=False), "such as lm_head.weight"),
    "a kernel of a hub": (lambda f: configured(f, attn_implementation="evil/attention"), "names a kernel"),
    "a kernel within": (
        lambda f: configured(f, _attn_implementation="evil/attention@main"),
        "names a kernel",
    ),
    "kernels of experts": (lambda f: configured(f, experts_implementation="evil/x"), "names a kernel"),
    "kernels by layer": (lambda f: configured(f, attn_implementation={"": "evil/x"}), "names a kernel"),
    "quantized by a library": (
        lambda f: configured(f, quantization_config={"quant_method": "bitsandbytes"}),
        "config.json asks for a quantization_config",
    ),
    "other weights": (
        lambda f: configured(f, transformers_weights="../x.safetensors"),
        "transformers_weights",
    ),
    "fused layers": (lambda f: configured(f, fusion_config={"a": 1}), "fusion_config"),
    "an adapter": (
        lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/x"}', "utf-8"),  # type: ignore[arg-type, return-value]
        "adapter_config.json",
    ),
    "deep config": (
        lambda f: (f / "config.json").write_text('{"a":' + "[" * 100_000, "utf-8"),  # type: ignore[arg-type, return-value]
        "config.json is not valid JSON",
    ),
    "large config": (lambda f: configured(f, more="x" * (1 << 21)), "longer than 1,048,576 bytes"),
    "config that is a list": (lambda f: (f / "config.json").write_text("[1]", "utf-8"), "no JSON object"),  # type: ignore[arg-type, return-value]
    "long header": (lambda f: header_length(f, 1 << 40), "its header would have 1,099,511,627,776 bytes"),
    "negative header": (lambda f: header_length(f, (1 << 64) - 1), "its header would have"),
    "no header": (lambda f: header_length(f, 0), "its header would have 0 bytes"),
    "short file": (lambda f: os.truncate(f / "model.safetensors", 5), "its header would have 0 bytes"),
    "truncated": (
        lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 4),
        "overlap, or leave a part of it out",
    ),
    "more at the end": (lambda f: weighted(f, more=b"PK"), "overlap, or leave a part of it out"),
    "200,000 names": (lambda f: weighted(f, many_names), "its header would have"),
    "another name": (lambda f: weighted(f, one_name_more), "unexpected keys in model.safetensors"),
    "overlapping": (
        lambda f: weighted(
            f,
            lambda h: tensor(h, "model.context_block.layers.1.norm.bias").update(
                data_offsets=tensor(h, "model.context_block.layers.0.norm.bias")["data_offsets"]
            ),
        ),
        "overlap, or leave a part of it out",
    ),
    "turned": (lambda f: weighted(f, other_width), "mismatched keys in model.safetensors"),
    "whole numbers": (lambda f: weighted(f, lambda h: tensor(h).update(dtype="I32")), "numbers of type I32"),
    "halves": (lambda f: weighted(f, lambda h: tensor(h).update(dtype="F16")), "another size than its shape"),
    "an unknown type": (lambda f: weighted(f, lambda h: tensor(h).update(dtype="O8")), "cannot be read"),
    "negative sizes": (lambda f: weighted(f, lambda h: tensor(h).update(shape=[-260, -8])), "cannot be read"),
    "huge sizes": (
        lambda f: weighted(f, lambda h: tensor(h).update(shape=[1 << 60, 1 << 60])),
        "cannot be read",
    ),
    "many dimensions": (
        lambda f: weighted(f, lambda h: tensor(h).update(shape=[1] * 10_000 + [260, 8])),
        "cannot be read",
    ),
    "offsets of text": (
        lambda f: weighted(f, lambda h: tensor(h).update(data_offsets="ab")),
        "cannot be read",
    ),
    "a pickle": (lambda f: pickled(f, "pytorch_model.bin"), "pytorch_model.bin may run code"),
    "another pickle": (lambda f: pickled(f, "model.pt"), "model.pt may run code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there is no model.safetensors"),
    "a part outside": (lambda f: indexed(f, "../out.safetensors"), "index.json names no files"),
    "a part by its path": (lambda f: indexed(f, str(f.parent / "out.safetensors")), "index.json names no"),
    "a part that is a pickle": (lambda f: indexed(f, "x.bin"), "which is no safetensors file"),
    "a part that is a number": (lambda f: indexed(f, 5), "index.json names no files"),
    "a part that is not there": (lambda f: indexed(f, "x.safetensors"), "cannot be read"),
    "ids": (lambda f: vocabulary(f, 4_294_967_290), "an id in it is no number below"),
    "ids of text": (lambda f: vocabulary(f, "x"), "an id in it is no number below"),
    "negative ids": (lambda f: vocabulary(f, -1), "tokenizer.json"),
    "deep tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("[" * 100_000, "utf-8"),  # type: ignore[arg-type, return-value]
        "tokenizer.json",
    ),
    **{
        f"a {kind} as {name}": (lambda f, n=name, k=kind: replaced(f, n, k), "")
        for kind in ("pipe", "device", "folder")
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    },
}
"""What is done to a folder, and words of what is said of it."""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_folder_is_refused(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence that names the folder; the library that would build a model is not asked."""
    spoil, says = REFUSED[name]
    spoil(folder)
    if "token" not in name and "ids" not in name:

        def asked(*_: object, **__: object) -> None:
            raise AssertionError("a model was built")

        monkeypatch.setattr(TandemForCausalLM, "from_pretrained", asked)
    assert run(["generate", str(folder), "--prompt", "x"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert str(folder) in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    for advised in ("weights_only", "torch.load", "unpickle", "trust_remote_code", "pip install"):
        assert advised not in said
    assert len(said) < 2000
    assert not list(folder.parent.rglob("pwned"))


HARMLESS: dict[str, Callable[[Path], Any]] = {
    "as it is": lambda _: None,
    "a million beams": lambda f: (f / "generation_config.json").write_text(
        '{"num_beams": 1000000, "max_new_tokens": 1000000000000, "custom_generate": "evil/x"}', "utf-8"
    ),
    "generation that is too deep": lambda f: (f / "generation_config.json").write_text("[" * 99_999, "utf-8"),
    "code": lambda f: [(f / name).write_text(EVIL, "utf-8") for name in
                       ("modeling_tandem.py", "configuration_tandem.py", "evil.py", "__init__.py")]
    + [configured(f, auto_map={"AutoConfig": "evil.X", "AutoModelForCausalLM": "evil/repo--evil.X"})],
    "custom generation": lambda f: [
        (f / "custom_generate").mkdir(),
        (f / "custom_generate" / "generate.py").write_text(EVIL, "utf-8"),
    ],
    "a type of numbers": lambda f: configured(f, dtype="os.system"),
    "a pickle beside": lambda f: (f / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR."),
    "other names": lambda f: configured(f, _name_or_path="evil/x", transformers_version="99"),
}  # fmt: skip
"""What is done to a folder whose weights are read all the same, as nothing of it is followed."""


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_not_followed_does_no_harm(name: str, folder: Path, model: Path) -> None:
    HARMLESS[name](folder)
    loaded, expected = load_model(folder)[0], load_model(model)[0]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
    assert loaded.generation_config.num_beams in (None, 1)
    assert not list(folder.parent.rglob("pwned"))


def test_parts_and_models_without_a_head_are_read(folder: Path, model: Path) -> None:
    """What other programs save: in several files, from the base model, with a head of its own."""
    expected = load_model(model)[0].state_dict()
    shutil.rmtree(folder)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.save_pretrained(folder, max_shard_size="4KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert all(
        torch.equal(weight, expected[name]) for name, weight in load_model(folder)[0].state_dict().items()
    )
    for path in folder.glob("model*"):
        path.unlink()
    loaded.model.save_pretrained(folder)
    assert all(
        torch.equal(weight, expected[name]) for name, weight in load_model(folder)[0].state_dict().items()
    )
    untied = TandemForCausalLM(
        TandemConfig(vocab_size=260, bos_token_id=0, tie_word_embeddings=False, **SIZES)
    )  # type: ignore[arg-type]
    untied.save_pretrained(folder)
    assert torch.equal(load_model(folder)[0].lm_head.weight, untied.lm_head.weight)


@pytest.mark.parametrize("values", [{size: largest + 1} for size, largest in LARGEST.items()] + [
    {"num_labels": 10**9}, {"attn_implementation": "evil/x"}, {"_attn_implementation": "evil/x"},
    {"layer_norm_eps": float("inf")},
])  # fmt: skip
def test_a_configuration_of_absurd_sizes_is_none(values: dict[str, Any], folder: Path) -> None:
    """Also where the library reads it."""
    with pytest.raises(ValueError, match=next(iter(values))):
        TandemConfig(**values)
    configured(folder, **values)
    with pytest.raises(ValueError, match=next(iter(values))):
        AutoModelForCausalLM.from_pretrained(folder)


def test_an_embedding_lies_in_the_folder_it_is_read_from(folder: Path) -> None:
    indexed(folder, "../out.safetensors")
    with pytest.raises(DataError, match="no file beside it"):
        pretrained(str(folder), 260, 8)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}', "utf-8")
    with pytest.raises(DataError, match="index"):
        pretrained(str(folder), 260, 8)


def test_files_that_are_read_whole_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WHOLE_BYTES <= 1 << 28
    assert checking.HEADER_BYTES < 100_000_000  # which the library allows
    monkeypatch.setattr("tandem.decoding.read_text.__defaults__", (1000,))
    with pytest.raises(DataError, match="1,000"):
        load_tokenizer(str(folder))
    with pytest.raises(RunDirError, match="1,000"):
        load_model(folder)
