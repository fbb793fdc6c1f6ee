"""Well-known architectures with random weights: for what is converted and covered, not for quality.

Nets of torchvision, and BERT and Llama of two small layers from transformers, with datasets of
random inputs. The same seed gives the same weights; batch normalizations have seen a few batches,
for with the statistics they start with such nets give a constant.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qb_cluster.errors import PlugInError
from qb_cluster.installation import install_line
from qb_pytorch.training import reproducible

CLASSES: Final = 10
SMALL, USUAL = 64, 224
"""Sides of images, in pixels."""
VOCABULARY: Final = 512
TOKENS: Final = 16
WIDTH: Final = 64
LAYERS: Final = 2
HEADS: Final = 4
_EVALUATION, _CALIBRATION = 32, 64
_BATCHES, _BATCH = 4, 16


def resnet18(*, seed: int = 0) -> nn.Module:
    """Give torchvision's ResNet-18.

    Args:
        seed: of the weights.

    Returns:
        In evaluation mode; takes ``(n, 3, 64, 64)``, returns logits ``(n, 10)``, both float32.

    Raises:
        PlugInError: torchvision is not installed.
    """
    return _vision("resnet18", SMALL, seed)


def mobilenet_v3_small(*, seed: int = 0) -> nn.Module:
    """Give torchvision's MobileNetV3-Small; all else as for ``resnet18``."""
    return _vision("mobilenet_v3_small", SMALL, seed)


def vit_b_16(*, seed: int = 0) -> nn.Module:
    """Give torchvision's ViT-B/16, for ``(n, 3, 224, 224)``; all else as for ``resnet18``."""
    return _vision("vit_b_16", USUAL, seed)


def bert(*, seed: int = 0) -> nn.Module:
    """Give a BERT of two layers that classifies.

    Args:
        seed: of the weights.

    Returns:
        In evaluation mode; takes ``input_ids`` and ``attention_mask``, int64 ``(n, 16)``, and
        returns logits ``(n, 10)``, float32.

    Raises:
        PlugInError: transformers is not installed.
    """
    transformers = _transformers()
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=TOKENS,
        num_labels=CLASSES,
    )
    with reproducible(seed=seed):
        return _Logits(transformers.BertForSequenceClassification(config)).eval()


def llama(*, seed: int = 0) -> nn.Module:
    """Give a Llama of two layers that scores the next token.

    Args:
        seed: of the weights.

    Returns:
        In evaluation mode; takes ``input_ids`` and ``attention_mask``, int64 ``(n, 16)``, and
        returns logits of the token after the last, ``(n, 512)``, float32.

    Raises:
        PlugInError: transformers is not installed.
    """
    transformers = _transformers()
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=TOKENS,
        use_cache=False,
    )
    with reproducible(seed=seed):
        return _Logits(transformers.LlamaForCausalLM(config)).eval()


def small_images() -> dict[str, Any]:
    """Give random images ``(32, 3, 64, 64)``, random classes, and 64 others for calibration."""
    return _images(SMALL)


def images() -> dict[str, Any]:
    """Give random images ``(32, 3, 224, 224)``; all else as for ``small_images``."""
    return _images(USUAL)


def sentences() -> dict[str, Any]:
    """Give random tokens ``(32, 16)`` with none masked, and random classes."""

    def tokens(rng: np.random.Generator, count: int) -> dict[str, NDArray[np.int64]]:
        shape = (count, TOKENS)
        return {
            "input_ids": rng.integers(0, VOCABULARY, shape),
            "attention_mask": np.ones(shape, np.int64),
        }

    return _dataset(tokens)


class _Logits(nn.Module):
    """A model of transformers as others are: tokens in, scores of one row per example out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits = self.net(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits[:, -1] if logits.ndim == 3 else logits


def _vision(name: str, side: int, seed: int) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise _missing("torchvision") from error
    with reproducible(seed=seed), torch.no_grad():
        net: nn.Module = getattr(models, name)(weights=None, num_classes=CLASSES)
        if name.startswith("vit"):  # which starts with a head of zeros
            nn.init.normal_(net.heads.head.weight, std=0.02)
        if any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules()):
            net.train()
            for _ in range(_BATCHES):
                net(torch.randn(_BATCH, 3, side, side))
    return net.eval()


def _images(side: int) -> dict[str, Any]:
    def pixels(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return rng.standard_normal((count, 3, side, side), dtype=np.float32)

    return _dataset(pixels)


def _dataset(draw: Callable[[np.random.Generator, int], Any]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "inputs": draw(rng, _EVALUATION),
        "targets": rng.integers(0, CLASSES, _EVALUATION),
        "calibration": {"inputs": draw(rng, _CALIBRATION)},
    }


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise _missing("transformers") from error
    return transformers


def _missing(package: str) -> PlugInError:
    return PlugInError(f"{package} is not installed: {install_line('architectures')}")
