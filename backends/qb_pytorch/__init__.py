"""The PyTorch backend: torchao's int8 kernels, and simulated quantization of any bit-width."""

from qb_pytorch.backend import PyTorchBackend

__all__ = ["PyTorchBackend"]
