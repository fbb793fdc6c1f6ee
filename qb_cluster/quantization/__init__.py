"""Quantization Engine: the scheme vocabulary and the reference arithmetic, in NumPy."""
