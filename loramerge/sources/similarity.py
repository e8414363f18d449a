"""How similar texts are: cosines of TF-IDF vectors, of vectors from a file, or of vectors from a model."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from loramerge.arrays.backend import Array
from loramerge.errors import SourceError, UsageError, printable, say
from loramerge.formats.files.json import read_object
from loramerge.formats.files.npz import read_npz
from loramerge.request.request import TFIDF

HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # how the Hub names a repository
FILES = (".npz", ".safetensors", ".json")
DIGITS = 12  # of a similarity: texts that are alike are then exactly so, on every machine
Names = Sequence[tuple[str, ...]]  # what each source may be called, the shown name first


def similarities(
    query: str, names: Names, texts: Callable[[], Sequence[str]], embedding: str | Path | None = None
) -> list[float]:
    """(T,) the cosine of the query with every source.

    Args:
        texts: their descriptions, which a file of vectors does not need.
        embedding: ``"tfidf"``, a file of vectors by name (that of the query by its text), or a model of
            sentence-transformers: its folder, or its name.

    Raises:
        UsageError: a text or a name that cannot be compared.   SourceError: vectors that cannot be read.

    >>> said = ["Writes SQL queries.", "Writes poems in rhyme."]
    >>> [round(s, 2) for s in similarities("rhymes for poems", [("sql",), ("poet",)], lambda: said)]
    [0.0, 0.31]
    """
    kind = str(TFIDF if embedding is None else embedding)
    if kind == TFIDF:
        vectors = _tfidf(query, texts(), names)
    elif kind.endswith(FILES):
        vectors = _of_file(Path(kind), query, names)
    else:
        vectors = _of_model(kind, [*texts(), query])
    return _cosines(vectors, [own[0] for own in names])


def _cosines(vectors: Array, names: Sequence[str]) -> list[float]:
    """The cosines of the last row with the others."""
    largest = np.abs(vectors).max(axis=1)
    fine = (largest > 0) & (largest < np.inf)  # squares of what is left neither overflow nor vanish
    vectors = vectors / np.where(fine, largest, 1.0)[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt((vectors**2).sum(axis=1))
    for name, length in zip([*names, "the query"], lengths.tolist(), strict=True):
        if not (math.isfinite(length) and length > 0):
            raise UsageError(f"The vector of {printable(name)} is zero or not finite: it has no direction.")
    *others, wanted = vectors / lengths[:, None]
    return [min(1.0, max(-1.0, round(float((each * wanted).sum()), DIGITS))) for each in others]


def _tfidf(query: str, texts: Sequence[str], names: Names) -> Array:
    """(T + 1, words), the query last. Stop words of English, and words of one letter, do not count."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second, so only here

    vectorizer = TfidfVectorizer(stop_words="english", norm=None)
    if not (words := set(vectorizer.build_analyzer()(query))):
        raise UsageError(f"{say('describe')} {printable(repr(query), 60)} has no word to compare: say more.")
    found = [set(vectorizer.build_analyzer()(text)) for text in texts]
    for own, their in zip(names, found, strict=True):
        if not their:
            raise UsageError(f"The description of {printable(own[0])} has no word to compare: say more.")
    if not any(words & their for their in found):
        raise UsageError(
            f"{say('describe')} {printable(repr(query), 60)} shares no word with any "
            f"description: use their words, "
            f"or a {say('embedding')} that knows what words mean."
        )
    return np.asarray(vectorizer.fit_transform([*texts, query]).toarray(), dtype=np.float64)


def _of_file(path: Path, query: str, names: Names) -> Array:
    """(T + 1, n) of the vectors by name, the query last."""
    table = _table(path)
    rows = [_row(table, own, path) for own in names]
    if query not in table:
        raise UsageError(
            f"{printable(path)} has no vector named {printable(repr(query), 60)}: that of the query goes by "
            f"the text of {say('describe')}."
        )
    rows.append(_vector(table[query], query, path))
    if len({len(row) for row in rows}) > 1:
        raise SourceError(f"{printable(path)} has vectors of different lengths.")
    return np.stack(rows)


def _row(table: Mapping[str, Any], own: tuple[str, ...], path: Path) -> Array:
    name = next((name for name in own if name in table), None)
    if name is None:
        raise UsageError(f"{printable(path)} has no vector for {printable(own[0])}.")
    return _vector(table[name], name, path)


def _vector(values: Any, name: str, path: Path) -> Array:
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        row = np.empty(0)
    if row.ndim != 1 or row.size == 0:
        raise SourceError(f"{printable(name)} in {printable(path)} is not a list of numbers.")
    return row


def _table(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".json":
        return read_object(path, str(path))
    if path.suffix == ".safetensors":
        from loramerge.arrays import dtypes
        from loramerge.formats.files.safetensors import open_file

        return {name: dtypes.wide(t.read()) for name, t in open_file(path, str(path)).tensors.items()}
    return read_npz(path, str(path))


def _of_model(name: str, texts: Sequence[str]) -> Array:
    """(T + 1, n) by a model of sentence-transformers: from its folder, or from the Hub by its whole name."""
    if not os.path.isdir(name) and not HUB.fullmatch(name):
        raise UsageError(
            f"{say('embedding')} {printable(name)} is neither tfidf nor a file of vectors "
            f"({', '.join(FILES)}), nor "
            "the folder of a model, nor the name of one, such as sentence-transformers/all-MiniLM-L6-v2."
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UsageError(
            f"{say('embedding')} {printable(name)} is a model, which needs the extra `text`: pip install "
            f"'loramerge[text]'. Without it there are tfidf and files of vectors ({', '.join(FILES)})."
        ) from None
    try:
        with _no_bars():
            model = SentenceTransformer(name, device="cpu")
    except Exception as error:  # whatever a model that is not there, or is none, may raise
        raise SourceError(f"The model {printable(name)} cannot be loaded: {printable(error)}.") from error
    different = sorted(set(texts))  # in a batch, the last digits of a text depend on the others
    rows = np.asarray(model.encode(different, show_progress_bar=False), dtype=np.float64)
    return rows[[different.index(text) for text in texts]]


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers shows how it loads weights, even of a small model."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
