"""Token embeddings, which are also the output head: spectral, random, or from a trained model. [V, E]"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sparse
import torch
from safetensors import SafetensorError, safe_open

from tandem.advice import together
from tandem.checksums import opened
from tandem.decoding import read_text
from tandem.errors import DataError, MisfitError
from tandem.fingerprint import fingerprint
from tandem.folders import atomic_write, remove_drafts, storing
from tandem.settings import EmbeddingSettings
from tandem.text.hub import Fetch, files_of
from tandem.text.places import user_path
from tandem.tokens.prepare import Corpus
from tandem.tokens.store import TokenStream, write_array

Table = npt.NDArray[np.float32]

CUSTOMARY_NAMES = (
    *("wte.weight", "embed_tokens.weight", "tok_embeddings.weight", "word_embeddings.weight"),
    *("embed_in.weight", "token_embedding.weight", "token_embeddings.weight", "embedding.weight"),
    *("embeddings.weight", "shared.weight"),
)
"""How models call their input embedding, after prefixes such as `transformer.`, in the order of search."""
EXTRA_DIMENSIONS = 64
"""Dimensions that the randomised SVD computes beyond those wanted, for accuracy."""
POWER_ITERATIONS = 4
"""Of the randomised SVD; each one multiplies by the matrix twice."""
MANY_TOKENS = 10_000
"""Tokens with co-occurrences beyond which the SVD computes in single precision and by fewer operations."""
UNSEEN_LENGTH = 0.1
"""Length of the vector of a token without co-occurrences, relative to the others."""
COUNTED_PAIRS = 1 << 22
"""Pairs of tokens counted at once. It bounds memory and changes nothing else."""
MADE_HERE = ("spectral", "random")
"""Sources that are no model's."""
WEIGHTS = "model.safetensors"
"""The file of a model's weights, which may be split into parts listed by an index."""


def embedding_table(
    settings: EmbeddingSettings, corpus: Corpus, embed_dim: int, cache: Path | None, seed: int = 0
) -> tuple[Table, str]:
    """The embedding of every token, [V, E] float32, and the fingerprint of this table.

    `spectral` tables are kept in `cache`, if there is one, and compared with their fingerprint when read.
    They are the same for every seed, as are those of a trained model; `random` ones follow `seed`.

    Raises DataError if the source cannot be read or holds values that are not finite. Raises MisfitError if
    it does not fit the vocabulary or `embed_dim`.
    """
    size, window, norm = corpus.vocab_size, settings.window, settings.norm
    if settings.source == "spectral":
        check_fit(settings, size, embed_dim)
        request = {"window": window, "norm": norm, "embed_dim": embed_dim}
        key = fingerprint("spectral", corpus.train.fingerprint, request)
        table = _cached(cache, key, lambda: spectral(corpus.train, size, embed_dim, window, norm))
    elif settings.source == "random":
        table = _scaled(np.random.default_rng(seed).standard_normal((size, embed_dim)), norm).astype(
            np.float32
        )
    else:
        table = pretrained(settings.source, size, embed_dim)
    return table, fingerprint("embeddings", table)


def table_seed(settings: EmbeddingSettings, seed: int) -> int:
    """The seed of the table that a run with `seed` starts from: the same for all where nothing is drawn."""
    return seed if settings.source == "random" else 0


def check_fit(settings: EmbeddingSettings, vocab_size: int, embed_dim: int) -> None:
    """Raises MisfitError if spectral embeddings cannot be so long; as `pretrained` for those of a model."""
    if settings.source not in MADE_HERE:
        pretrained(settings.source, vocab_size, embed_dim)
    if settings.source == "spectral" and embed_dim >= vocab_size:
        raise MisfitError.of(
            f"spectral embeddings must be shorter than the vocabulary of {vocab_size}, but setting "
            f"model.embed_dim is {embed_dim}",
            {"embeddings.source": "random"},
        )


def spectral(stream: TokenStream, vocab_size: int, embed_dim: int, window: int, norm: float) -> Table:
    """U·√S of the truncated SVD of the positive pointwise mutual information (PPMI) of co-occurrences.

    Two tokens co-occur if they stand at most `window` apart in one document. A pair counts 1/distance. The
    SVD is a randomised one: power iterations from a fixed seed. Each dimension's largest entry is positive.
    Rows have a root mean square length of `norm`. Tokens without co-occurrences get a random vector of a
    tenth of the others' length. The same machine gives the same bits. Of more than MANY_TOKENS tokens the
    SVD is made in single precision.

    Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization". Halko, Martinsson and
    Tropp 2011, algorithm 4.4.
    """
    ppmi = _ppmi(_cooccurrences(stream, vocab_size, window))
    seen = np.diff(ppmi.indptr) > 0
    # Before the rest of the table is there, since both take most of the memory.
    roots = _scaled(_root_vectors(ppmi[seen][:, seen], embed_dim), 1.0) if seen.any() else None
    table = _scaled(np.random.default_rng(0).standard_normal((vocab_size, embed_dim)), 1.0)
    table *= UNSEEN_LENGTH
    if roots is not None:
        table[seen] = roots
        del roots
    return _scaled(table, norm).astype(np.float32)


def pretrained(source: str, vocab_size: int, embed_dim: int) -> Table:
    """The input embedding of a trained model, [V, E], read without loading the rest of the model.

    `source` is a .safetensors file, a hub name, or a model folder with weights in one such file or several.
    Rows beyond `vocab_size` are cut off.

    Raises DataError if there is no such model, no tensor can be told to be the embedding, or it has values
    that are not finite. Raises MisfitError for another width than `embed_dim`, or for fewer rows than
    `vocab_size`.
    """
    path = user_path(source)
    with files_of(source, "model", "embeddings.source", "spectral", ".safetensors") as fetch:
        table = _read_embedding(path if path.is_file() else _weights_file(fetch, source), source)
    rows, width = table.shape
    found = []
    if width != embed_dim:
        said = f"has vectors of length {width}, but setting model.embed_dim is {embed_dim}"
        found.append(MisfitError.of(f"the embedding of {source} {said}", {"model.embed_dim": width}))
    if rows < vocab_size:
        said = f"has {rows} rows, but the vocabulary has {vocab_size} tokens"
        use = together("use the tokenizer of the same model with {}", "tokenizer.source")
        found.append(MisfitError.of(f"the embedding of {source} {said}", {}, use))
    if found:
        raise MisfitError.of_all(found)
    table = table[:vocab_size]
    if not torch.isfinite(table).all():
        raise DataError(f"the embedding of {source} holds values that are not finite; use an undamaged copy")
    return table.float().contiguous().numpy()


def _cooccurrences(stream: TokenStream, vocab_size: int, window: int) -> Any:
    """Symmetric [V, V] sparse counts of pairs within `window` of each other and in one document."""
    counts = sparse.csr_array((vocab_size, vocab_size))
    for distance in range(1, min(window, len(stream) - 1) + 1):
        pairs = _pairs(stream, vocab_size, distance)
        # 1/distance is added up pair by pair. So the sum does not depend on how many are counted at once.
        sums = np.full(int(pairs.data.max(initial=0)), 1 / distance).cumsum()
        counts = counts + sparse.csr_array((sums[pairs.data - 1], pairs.indices, pairs.indptr), pairs.shape)
    return (counts + counts.T).tocsr()


def _pairs(stream: TokenStream, vocab_size: int, distance: int) -> Any:
    """[V, V] sparse int64: how often one token stands `distance` before another in one document."""
    counts = sparse.csr_array((vocab_size, vocab_size), dtype=np.int64)
    last = len(stream) - distance
    for start in range(0, last, COUNTED_PAIRS):
        stop = min(start + COUNTED_PAIRS, last)
        ids = stream.ids[start : stop + distance].astype(np.int64)
        position = np.arange(start, stop + distance)
        document = np.searchsorted(stream.document_starts[1:], position, side="right")
        together = document[distance:] == document[:-distance]
        pairs = ids[:-distance][together] * vocab_size + ids[distance:][together]
        pairs, times = np.unique(pairs, return_counts=True)
        counts = counts + sparse.coo_array((times, divmod(pairs, vocab_size)), shape=counts.shape).tocsr()
    return counts


def _ppmi(counts: Any) -> Any:
    """max(0, log p(a, b) / (p(a) p(b))) of symmetric sparse counts; only positive entries stored."""
    totals = counts.sum(axis=1)
    pairs = counts.tocoo()
    rows, columns = pairs.coords
    information = np.log(pairs.data * totals.sum() / (totals[rows] * totals[columns]))
    positive = information > 0
    entries = information[positive], (rows[positive], columns[positive])
    return sparse.coo_array(entries, shape=counts.shape).tocsr()


def _root_vectors(matrix: Any, width: int) -> npt.NDArray[np.float64]:
    """U·√S [n, width] of a sparse symmetric [n, n] matrix; missing columns are zero.

    Each column's largest entry is positive.
    """
    pairs, sketch_width = matrix.tocoo(), min(width + EXTRA_DIMENSIONS, matrix.shape[0])
    many = matrix.shape[0] > MANY_TOKENS
    operator = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack(pairs.coords)),
        torch.from_numpy(pairs.data.astype(np.float32 if many else np.float64)),
        pairs.shape,
        is_coalesced=True,
        check_invariants=False,
    )
    threads = torch.get_num_threads()
    # One gives the same bits whatever the setting. On two busy cores, two took ten times as long.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if many:
                u, s = _symmetric_svd(operator, sketch_width)
            else:
                u, s, _ = torch.svd_lowrank(operator, q=sketch_width, niter=POWER_ITERATIONS)
    finally:
        torch.set_num_threads(threads)
    vectors = (u * s.sqrt())[:, :width].numpy()
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0, keepdims=True), axis=0)
    missing = (0, 0), (0, width - vectors.shape[1])
    return np.pad(vectors * np.where(largest < 0, -1.0, 1.0), missing)


def _symmetric_svd(operator: torch.Tensor, sketch_width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """U [n, q] and S [q] of a symmetric [n, n] matrix A, by the steps of `torch.svd_lowrank`.

    With a basis Q [n, q] of A's range, that takes the SVD of QᵀA [q, n]. As A is symmetric, the same U and S
    follow from the eigenvectors of (A·Q)ᵀ(A·Q) [q, q]. In single precision it takes a quarter of the time.
    """
    basis = torch.randn(len(operator), sketch_width, dtype=operator.dtype)
    for _ in range(1 + 2 * POWER_ITERATIONS):
        # QR gives its Q by columns, of which a sparse product takes ten times as long.
        basis = torch.linalg.qr(torch.sparse.mm(operator, basis)).Q.contiguous()
    image = torch.sparse.mm(operator, basis).double()  # else squares would lose the small values
    values, vectors = torch.linalg.eigh(image.t() @ image)
    return basis @ vectors.flip(1).to(basis.dtype), values.flip(0).clamp(min=0).sqrt()


def _scaled(rows: npt.NDArray[np.float64], norm: float) -> npt.NDArray[np.float64]:
    """`rows` times one number. The root mean square of their lengths is `norm`."""
    length = np.sqrt(np.square(rows).sum(axis=1).mean())
    return rows * (norm / length) if length > 0 else rows


def _cached(cache: Path | None, key: str, compute: Callable[[], Table]) -> Table:
    """The table in the cache, if its bytes are still those that its file name tells, else a computed one."""
    if cache is None:
        return compute()
    folder = cache / "embeddings"
    remove_drafts(folder)
    for path in sorted(folder.glob(f"{key}-*.npy")):
        try:
            with opened(path) as file:
                table: Table = np.load(file)
        except (OSError, ValueError, EOFError):
            continue
        if path.stem == f"{key}-{fingerprint('embeddings', table)}":
            return table
    table = compute()
    path = folder / f"{key}-{fingerprint('embeddings', table)}.npy"
    with storing("the embeddings", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft, draft.open("wb") as file:
            write_array(file, table)
    return table


def _weights_file(fetch: Fetch, source: str) -> Path:
    """The file of a model's weights. Where an index lists parts, the one that holds the embedding."""
    if whole := fetch(WEIGHTS):
        return whole
    if index := fetch(f"{WEIGHTS}.index.json"):
        try:
            parts: dict[str, str] = json.loads(read_text(index))["weight_map"]
        except (ValueError, LookupError, TypeError, RecursionError, DataError) as error:
            raise DataError(f"{index} is not an index of weights ({error}); fetch it again") from None
        part = str(parts[_embedding_name(list(parts), source)] if isinstance(parts, dict) else parts)
        if part != Path(part).name:
            raise DataError(f"{index} names {part[:100]!r}, which is no file beside it; fetch it again")
        if path := fetch(part):
            return path
        raise DataError(f"{source} lacks the file {part} that its index names; fetch it again")
    raise DataError(f"{source} holds no model weights (looked for {WEIGHTS})")


def _read_embedding(path: Path, source: str) -> torch.Tensor:
    """The embedding tensor in a file of weights."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
            return file.get_tensor(_embedding_name([n for n, s in shapes.items() if len(s) == 2], source))
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read model weights from {path} ({str(error).splitlines()[0]})") from None


def _embedding_name(matrices: list[str], source: str) -> str:
    """Which of the named matrices is the input embedding. It has a customary name, or is the only one."""
    for customary in CUSTOMARY_NAMES:
        if found := [name for name in matrices if name == customary or name.endswith(f".{customary}")]:
            matrices = found
            break
    if len(matrices) == 1:
        return matrices[0]
    shown = ", ".join(matrices[:8]) + (", …" if len(matrices) > 8 else "") if matrices else "none"
    raise DataError(
        f"cannot tell which tensor of {source} is the token embedding (candidates: {shown}); "
        "save it alone in a .safetensors file, as `embedding.weight`"
    )
