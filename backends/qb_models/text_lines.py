"""PaddleOCR's recogniser of text lines and its classifier of their angle, and lines for them.

The models are the ``.onnx`` files of the wheel ``rapidocr-onnxruntime`` (Apache-2.0). The lines are
words of docstrings, drawn in matplotlib's own fonts.
"""

import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_models import docstrings
from qb_models.wheels import missing, wheel_file

HEIGHT: Final = 48
LINE_WIDTH: Final = 320
ANGLE_WIDTH: Final = 192
LINES: Final = 64
"""For each of evaluation and calibration."""
LONGEST: Final = 20
NOISE: Final = 0.1
FONTS: Final = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")


def recogniser() -> Path:
    """Give the path of PP-OCRv4's recogniser.

    It takes ``(n, 3, 48, width)`` and returns the probabilities of 6,625 symbols for every 8
    columns.

    Raises:
        PlugInError: the extra ``models`` is not installed.
    """
    return _file("ch_PP-OCRv4_rec_infer.onnx")


def angle_classifier() -> Path:
    """Give the path of the classifier that tells whether a line stands on its head.

    It takes ``(n, 3, 48, 192)`` and returns the probabilities of 0 and 180 degrees.

    Raises:
        PlugInError: the extra ``models`` is not installed.
    """
    return _file("ch_ppocr_mobile_v2.0_cls_infer.onnx")


def lines() -> dict[str, Any]:
    """Give drawn lines, and what is written in them.

    Returns:
        ``inputs`` float32 ``(64, 3, 48, 320)`` in -1 … 1; ``targets`` int64 ``(64, 20)``: the
        symbols as the recogniser numbers them, then 0; ``calibration``: 64 other lines. The
        metric is ``qb_models.metrics:text_read``.

    Raises:
        PlugInError: the extra ``models`` is not installed, or this Python has no source files.
    """
    texts = _texts(docstrings.evaluation())
    symbols = {symbol: number for number, symbol in enumerate(_symbols())}
    targets = np.zeros((LINES, LONGEST), np.int64)
    for row, text in zip(targets, texts, strict=True):
        row[: len(text)] = [symbols[symbol] for symbol in text]
    return {
        "inputs": _drawn(texts, LINE_WIDTH, seed=0),
        "targets": targets,
        "ids": [f"evaluation-{row:02d}" for row in range(LINES)],
        "calibration": {
            "inputs": _drawn(_texts(docstrings.training()), LINE_WIDTH, seed=1),
            "ids": [f"calibration-{row:02d}" for row in range(LINES)],
        },
    }


def angles() -> dict[str, Any]:
    """Give drawn lines, every second one on its head.

    Returns:
        ``inputs`` float32 ``(64, 3, 48, 192)`` in -1 … 1; ``targets`` int64 ``(64,)``, 1 where the
        line is upside down; ``calibration``: 64 other lines.

    Raises:
        PlugInError: the extra ``models`` is not installed, or this Python has no source files.
    """
    turned = np.arange(LINES) % 2
    return {
        "inputs": _turned(_drawn(_texts(docstrings.evaluation()), ANGLE_WIDTH, seed=0), turned),
        "targets": turned.astype(np.int64),
        "ids": [f"evaluation-{row:02d}" for row in range(LINES)],
        "calibration": {
            "inputs": _turned(_drawn(_texts(docstrings.training()), ANGLE_WIDTH, seed=1), turned),
            "ids": [f"calibration-{row:02d}" for row in range(LINES)],
        },
    }


def _turned(images: NDArray[np.float32], which: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.where(which[:, None, None, None] == 1, images[:, :, ::-1, ::-1], images)


def _texts(sentences: docstrings.Sentences) -> list[str]:
    """Take the first words of sentences, as many as fit, where they are plain ASCII words."""
    texts: dict[str, None] = {}
    for sentence in sentences.texts:
        text = ""
        for word in sentence.split():
            if not (word.isascii() and word.isalnum() and len(text) + len(word) < LONGEST):
                break
            text = f"{text} {word}".strip()
        if len(text) > LONGEST // 2:
            texts[text] = None
    return list(texts)[:LINES]


def _drawn(texts: list[str], width: int, seed: int) -> NDArray[np.float32]:
    """Draw dark text on light paper with noise, at the left of images ``(n, 3, 48, width)``."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise missing("pillow") from error
    rng = np.random.default_rng(seed)
    images = np.zeros((len(texts), HEIGHT, width), np.float32)  # 0 is PaddleOCR's padding
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        font = ImageFont.truetype(_font(FONTS[index % len(FONTS)]), 28)
        left, top, right, bottom = font.getbbox(text)
        ink, paper = rng.integers(0, 100), rng.integers(180, 256)
        line = Image.new("L", (int(right - left) + 8, HEIGHT), int(paper))
        middle = (HEIGHT - (bottom - top)) / 2 - top
        ImageDraw.Draw(line).text((4 - left, middle), text, fill=int(ink), font=font)
        pixels = np.asarray(line.resize((min(width, line.width), HEIGHT))) / 127.5 - 1
        noise = NOISE * rng.standard_normal(pixels.shape)
        image[:, : pixels.shape[1]] = (pixels + noise).clip(-1, 1)
    return np.repeat(images[:, None], 3, axis=1)


def _font(name: str) -> Path:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise missing("matplotlib")
    return Path(spec.origin).parent / f"mpl-data/fonts/ttf/{name}.ttf"


def _symbols() -> list[str]:
    """Read the recogniser's symbols: the blank, those in its file, and the space."""
    import onnxruntime

    session = onnxruntime.InferenceSession(recogniser(), providers=["CPUExecutionProvider"])
    named = session.get_modelmeta().custom_metadata_map["character"]
    return ["", *named.splitlines(), " "]


def _file(name: str) -> Path:
    return wheel_file("rapidocr-onnxruntime", f"rapidocr_onnxruntime/models/{name}")
