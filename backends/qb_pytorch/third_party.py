"""Keeping other people's start-up chatter out of the user's terminal."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and log messages below errors.

    torchao logs every CUDA library that a CPU machine cannot load, and importing inductor or
    exporting a graph warns of functions that torch itself has deprecated: nothing that a user
    of QuantBench can act upon.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
