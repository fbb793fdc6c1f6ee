"""QuantBench cluster: sweeps that measure what quantization does to a model."""

from importlib.metadata import version

__version__ = version("qb-cluster")
