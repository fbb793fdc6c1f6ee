"""Text that every Python ships: the docstrings of eight of its own packages.

They are read from the source files, and nothing is imported. Which docstrings there are depends on
Python's version; within one they are the same on every machine.
"""

import ast
import sysconfig
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.errors import PlugInError

TOPICS: Final = (
    "asyncio", "email", "importlib", "logging", "multiprocessing", "turtle", "unittest", "xml",
)  # fmt: skip
SENTENCES: Final = 144
"""At most so many of one topic."""
EVALUATION_SENTENCES: Final = 32
"""Of each topic; the others are for training and calibration."""
SHORTEST: Final = 5
SAME: Final = 8
"""Sentences that begin with so many equal words count as one: a copy must not be in two parts."""
SPLIT_SEED: Final = 0

WORDS: Final = 24
"""Words of a sentence that ``words`` keeps."""
BUCKETS: Final = 2048
"""Word ids: 0 is padding, every word has one of the others by its CRC-32."""

SYMBOLS: Final = 128
"""ASCII; any other character is 127."""
CONTEXT: Final = 32
"""Symbols that a model of the next one sees."""
EVALUATION_WINDOWS: Final = 512
TRAINING_WINDOWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Sentences:
    """First sentences of docstrings.

    Attributes:
        texts: distinct, each of at least five words.
        topics: int64, as long; the position in ``TOPICS`` of the package that each is from.
    """

    texts: tuple[str, ...]
    topics: NDArray[np.int64]


@cache
def evaluation() -> Sentences:
    """Give 32 sentences of each topic.

    Raises:
        PlugInError: this Python has no source files.
    """
    return _part(slice(EVALUATION_SENTENCES))


@cache
def training() -> Sentences:
    """Give the other sentences: at most 112 of each topic.

    Raises:
        PlugInError: this Python has no source files.
    """
    return _part(slice(EVALUATION_SENTENCES, SENTENCES))


def words() -> dict[str, Any]:
    """Give sentences as word ids, and which package each is from.

    Returns:
        ``inputs`` int64 ``(256, 24)``: ids of words in 1 … 2047, then 0; ``targets`` int64
        ``(256,)``, the position in ``TOPICS``; ``calibration``: the training sentences.

    Raises:
        PlugInError: this Python has no source files.
    """
    part = evaluation()
    return {
        "inputs": _word_ids(part.texts),
        "targets": part.topics,
        "ids": ids("evaluation", part.texts),
        "calibration": {
            "inputs": _word_ids(training().texts),
            "ids": ids("training", training().texts),
        },
    }


def word_training(_epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the training sentences of ``words`` and their topics."""
    return _word_ids(training().texts), training().topics


def next_symbol() -> dict[str, Any]:
    """Give windows of text, and the symbol that follows each.

    Returns:
        ``inputs`` int64 ``(512, 32)`` in 0 … 127, the ASCII codes; ``targets`` int64 ``(512,)``,
        the next code; ``calibration``: windows of the training text.

    Raises:
        PlugInError: this Python has no source files.
    """
    windows = _windows(evaluation().texts, EVALUATION_WINDOWS, seed=0)
    calibration = _windows(training().texts, EVALUATION_WINDOWS, seed=0)
    return {
        "inputs": windows[:, :-1],
        "targets": windows[:, -1],
        "ids": [f"evaluation-{row:03d}" for row in range(EVALUATION_WINDOWS)],
        "calibration": {
            "inputs": calibration[:, :-1],
            "ids": [f"training-{row:03d}" for row in range(EVALUATION_WINDOWS)],
        },
    }


def symbol_training(epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give windows of the training text and, at every position, the next symbol.

    Args:
        epoch: counted from 0; each has other windows.

    Returns:
        Inputs and targets, both int64 ``(1000, 32)``.
    """
    windows = _windows(training().texts, TRAINING_WINDOWS, seed=1 + epoch)
    return windows[:, :-1], windows[:, 1:]


def ids(part: str, texts: tuple[str, ...]) -> list[str]:
    """Name sentences by their place: they are distinct, and so are the parts."""
    return [f"{part}-{row:04d}" for row in range(len(texts))]


@cache
def _split() -> tuple[tuple[str, ...], ...]:
    """Give each topic's sentences, shuffled; one that two topics share belongs to the first."""
    rng = np.random.default_rng(SPLIT_SEED)
    by_beginning: dict[str, tuple[str, str]] = {}
    for topic in TOPICS:
        for text in _first_sentences(topic):
            beginning = " ".join(text.lower().split()[:SAME])
            by_beginning.setdefault(beginning, (topic, text))
    split = []
    for topic in TOPICS:
        found = [text for origin, text in by_beginning.values() if origin == topic]
        order = rng.permutation(len(found))[:SENTENCES]
        split.append(tuple(found[row] for row in order))
    return tuple(split)


def _part(which: slice) -> Sentences:
    parts = [texts[which] for texts in _split()]
    topics = np.repeat(np.arange(len(parts)), [len(texts) for texts in parts])
    return Sentences(tuple(text for texts in parts for text in texts), topics.astype(np.int64))


def _first_sentences(package: str) -> list[str]:
    """Read the first paragraphs of a package's docstrings, in the order of its files."""
    folder = Path(sysconfig.get_path("stdlib"))
    # Some systems leave the library's own tests out.
    inside = (file for file in (folder / package).rglob("*.py") if file.parent.name != "test")
    files = sorted(inside) or [folder / f"{package}.py"]
    found: dict[str, None] = {}
    for file in files:
        try:
            tree = ast.parse(file.read_bytes())
        except OSError as error:
            raise PlugInError(
                f"this Python has no source file {file}, and docstrings are read from there; "
                "install the whole standard library"
            ) from error
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                if len(text.split()) >= SHORTEST:
                    found[text] = None
    return list(found)


def _word_ids(texts: tuple[str, ...]) -> NDArray[np.int64]:
    rows = np.zeros((len(texts), WORDS), np.int64)
    for row, text in zip(rows, texts, strict=True):
        words = text.lower().split()[:WORDS]
        row[: len(words)] = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in words]
    return rows


def _windows(texts: tuple[str, ...], count: int, seed: int) -> NDArray[np.int64]:
    """Draw windows of one symbol more than a context from the texts, one a line."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(texts))
    text = "\n".join(texts[row] for row in order)
    symbols = np.array([min(ord(symbol), SYMBOLS - 1) for symbol in text], np.int64)
    starts = np.random.default_rng(seed).choice(len(symbols) - CONTEXT, count, replace=False)
    windows: NDArray[np.int64] = symbols[starts[:, None] + np.arange(CONTEXT + 1)]
    return windows
