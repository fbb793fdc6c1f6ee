"""TensorFlow itself: imported without its chatter, and its threads, which a process sets once."""

import functools
import os
from typing import Any

from qb_cluster.errors import UnsupportedError
from qb_litert.quiet import quiet

_ERRORS_ONLY = "3"
_KERAS_BACKEND = "tensorflow"


@functools.cache
def tensorflow() -> Any:
    """Import TensorFlow without a word on the terminal, and give it the cores it may use.

    Raises:
        UnsupportedError: Keras runs on another framework in this process.
    """
    # Read by TensorFlow's C++ when it is loaded; what a user has set stays.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _ERRORS_ONLY)
    with quiet():
        import keras
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
    if keras.backend.backend() != _KERAS_BACKEND:
        raise UnsupportedError(
            f"Keras runs on {keras.backend.backend()} in this process; unset KERAS_BACKEND, or "
            f"set it to {_KERAS_BACKEND}"
        )
    _set_threads_if_free(tf, _schedulable_cores())
    return tf


def use_threads(threads: int) -> None:
    """Give TensorFlow this many threads.

    They are the process's, not the model's, and fixed once TensorFlow has computed anything.
    More of them than asked for do no harm in a worker, which pins them all to its cores; fewer
    would be timed under a false name.

    Raises:
        UnsupportedError: TensorFlow runs with fewer already.
    """
    tf = tensorflow()
    if _set_threads_if_free(tf, threads):
        return
    # 0: somebody else let TensorFlow choose, which takes all cores it may use.
    present = tf.config.threading.get_intra_op_parallelism_threads() or _schedulable_cores()
    if present < threads:
        raise UnsupportedError(
            f"TensorFlow started with {present} threads in this process and cannot have "
            f"{threads} any more; sweep this number of threads on its own"
        )


def _set_threads_if_free(tf: Any, threads: int) -> bool:
    """Set the number of threads unless TensorFlow has started; tell which."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # it has started
        return False
    return True


def _schedulable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
