"""ONNX Runtime: torch → ONNX, stored integers, CPU kernels. Importing this loads no framework."""

from qb_onnxruntime.backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
