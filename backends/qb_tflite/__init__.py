"""TFLite: converted by litert-torch, quantized by ai-edge-quantizer, run by ai-edge-litert.

Importing this imports no framework. ``qb_litert/runtime.py`` alone is what a board needs.
"""

from qb_tflite.backend import TFLiteBackend

__all__ = ["TFLiteBackend"]
