"""TensorFlow: Keras models and SavedModels, quantized by TFLiteConverter, run by LiteRT.

Importing this imports no framework.
"""

from qb_tensorflow.backend import TensorFlowBackend

__all__ = ["TensorFlowBackend"]
