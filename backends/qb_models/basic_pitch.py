"""Basic Pitch, Spotify's model that hears notes in audio, as two files, and notes for it.

The files are those of the wheel ``basic-pitch`` (Apache-2.0). It asks for an old TensorFlow, which
the files do not need, so it is in no extra: ``pip install --no-deps basic-pitch``.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_models.wheels import wheel_file

INSTALL: Final = "pip install --no-deps basic-pitch==0.4.0"
RATE: Final = 22_050
SAMPLES: Final = 2 * RATE - 256
LOWEST_KEY, HIGHEST_KEY = 12, 75
"""Of a piano's 88, counted from 0: A1 to C7."""
A0: Final = 27.5
HARMONICS: Final = 5
LONGEST_WAIT_S: Final = 0.8
LEVEL: Final = 0.3
NOISE: Final = 0.003


def onnx() -> Path:
    """Give the path of the ``.onnx``.

    It takes audio ``(n, 43844, 1)`` at 22,050 Hz, and returns how strongly each of 172 frames holds
    the beginning and the sound of 88 notes, and 264 pitches.

    Raises:
        PlugInError: basic-pitch is not installed.
    """
    return _file("nmp.onnx")


def tflite() -> Path:
    """Give the path of the ``.tflite``, which computes the same.

    Raises:
        PlugInError: basic-pitch is not installed.
    """
    return _file("nmp.tflite")


def notes() -> dict[str, Any]:
    """Give two seconds of audio each, in which one plucked note is played.

    Returns:
        ``inputs`` float32 ``(64, 43844, 1)`` in -1 … 1; ``targets`` int64 ``(64,)``, the key of
        a piano, 0 … 87; ``calibration``: other notes. The metric is
        ``qb_models.metrics:pitch_found``.
    """
    keys = np.arange(LOWEST_KEY, HIGHEST_KEY + 1)
    return {
        "inputs": _played(keys, seed=0),
        "targets": keys,
        "ids": [f"evaluation-{row:02d}" for row in range(len(keys))],
        "calibration": {
            "inputs": _played(keys, seed=1),
            "ids": [f"calibration-{row:02d}" for row in range(len(keys))],
        },
    }


def _played(keys: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Add decaying harmonics below half the sampling rate, from a random moment on; add noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(SAMPLES) / RATE
    audio = NOISE * rng.standard_normal((len(keys), SAMPLES))
    for row, key in enumerate(keys):
        since = time - rng.uniform(0.1, LONGEST_WAIT_S)
        base = A0 * 2 ** (key / 12)
        decay = rng.uniform(1.5, 4)
        for harmonic in range(1, HARMONICS + 1):
            frequency = harmonic * base
            if frequency < RATE / 2:
                wave = np.sin(2 * np.pi * frequency * since + rng.uniform(0, 2 * np.pi))
                envelope = np.exp(-decay * harmonic**0.5 * since.clip(0)) * (since > 0)
                audio[row] += LEVEL / harmonic * wave * envelope
    return audio.clip(-1, 1).astype(np.float32)[:, :, None]


def _file(name: str) -> Path:
    return wheel_file(
        "basic-pitch", f"basic_pitch/saved_models/icassp_2022/{name}", install=INSTALL
    )
