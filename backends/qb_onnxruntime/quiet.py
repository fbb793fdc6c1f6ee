"""Keeping start-up chatter of torch's exporter and onnxruntime's quantizer off the terminal."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and log messages below errors.

    The exporter tells of torchvision's absence and of torch's own deprecations; the quantizer
    recommends a pre-processing that the exporter has done, and finds no channels in vectors.
    Neither is anything that a user of QuantBench can act upon.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    # logging.warning() without a handler sets up the root logger for the whole process.
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.removeHandler(handler)
        logging.disable(disabled)
