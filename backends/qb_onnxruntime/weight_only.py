"""Integer weights, float activations."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qb_cluster.contracts import Scheme
from qb_onnxruntime.blocks import PACKED_BITS, block_size
from qb_onnxruntime.dequantize import dequantizing
from qb_onnxruntime.graph import Chosen, Codes, Layer, Part, replace_layers, stored_dtype


def quantize_weight_only(
    model: onnx.ModelProto, scheme: Scheme, chosen: Chosen, accuracy_level: int
) -> None:
    """Quantize layers in place.

    Linear layers of 2, 4 and 8 bits become MatMulNBits, whose kernels read the packed weights.
    All others keep their node and get a weight that is dequantized on loading.
    """

    def replace(layer: Layer) -> Part | None:
        bits = chosen.get(layer.output)
        if bits is None:
            return None
        codes = layer.codes(scheme, bits)
        block = _block(layer, scheme, bits.weight)
        if block is None:
            dtype = stored_dtype(bits.weight)
            zero_point = None if codes.zero_point is None else codes.zero_point.astype(dtype)
            return dequantizing(
                layer, codes.integers.astype(dtype), codes.scale, zero_point, scheme.group_size
            )
        return _mat_mul_n_bits(layer, codes, bits.weight, block, accuracy_level)

    replace_layers(model, replace)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _block(layer: Layer, scheme: Scheme, bits: int) -> int | None:
    """Give the MatMulNBits block size of a layer; ``None`` if it keeps its node."""
    if not layer.is_linear or bits not in PACKED_BITS:
        return None
    return block_size(layer.rows.shape[1], scheme, bits)


def _mat_mul_n_bits(layer: Layer, codes: Codes, bits: int, block: int, accuracy_level: int) -> Part:
    outputs, inputs = layer.rows.shape

    def per_block(values: NDArray[Any]) -> NDArray[Any]:
        full = np.broadcast_to(values, layer.weight.shape)
        return np.moveaxis(full, layer.axis, 0)[:, ::block]

    middle = 2 ** (bits - 1)
    blocks = -(-inputs // block)
    rows = np.moveaxis(codes.integers, layer.axis, 0) + middle
    padded = np.pad(rows, ((0, 0), (0, blocks * block - inputs)), constant_values=middle)
    arrays = {
        f"{layer.name}_packed": pack(padded, bits).reshape(outputs, blocks, -1),
        f"{layer.name}_scale": np.ascontiguousarray(per_block(codes.scale)),
    }
    if codes.zero_point is not None:
        arrays[f"{layer.name}_zero_point"] = pack(per_block(codes.zero_point) + middle, bits)
    # Zero points are 2^(bits-1) when absent; then come the group index, which is obsolete, and
    # the bias.
    names = [*arrays, *([""] if codes.zero_point is None else [])]
    node = helper.make_node(
        "MatMulNBits",
        [layer.node.input[0], *names, *(["", layer.bias] if layer.bias else [])],
        list(layer.node.output),
        layer.node.name,
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block,
        accuracy_level=accuracy_level,
    )
    return Part([node], [numpy_helper.from_array(array, name) for name, array in arrays.items()])


def pack(codes: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Pack rows of codes 0 … 2^bits - 1 into bytes as MatMulNBits reads them, low bits first.

    onnxruntime's own MatMulNBitsQuantizer is no help here: it knows one symmetric rule
    (``weight_range="signed_max"``), skips Gemm silently, and importing it reconfigures the root
    logger.
    """
    per_byte = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_byte))).astype(np.uint8)
    shifts = (bits * np.arange(per_byte)).astype(np.uint8)
    pieces = padded.reshape(len(codes), -1, per_byte) << shifts
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(pieces, axis=-1)
    return packed
