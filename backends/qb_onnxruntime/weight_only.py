"""Integer weights, float activations."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qb_cluster.quantization.affine import quantize_symmetric
from qb_onnxruntime.graph import Layer, Part, replace_layers, stored

WIDEST_PACKED = 8


def quantize_weight_only(
    model: onnx.ModelProto, bits: int, *, per_channel: bool, block_size: int, accuracy_level: int
) -> None:
    """Quantize every layer in place.

    Linear layers of 2, 4 and 8 bits become MatMulNBits, whose kernels read the packed weights.
    All others keep their node and get a weight that is dequantized on loading.
    """

    def replace(layer: Layer) -> Part:
        if layer.is_linear and bits <= WIDEST_PACKED:
            return _mat_mul_n_bits(layer, bits, block_size, accuracy_level)
        return _dequantized(layer, bits, per_channel=per_channel)

    replace_layers(model, replace)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _mat_mul_n_bits(layer: Layer, bits: int, block_size: int, accuracy_level: int) -> Part:
    packed, scale = pack_blocks(layer.matrix, bits, block_size)
    outputs, inputs = layer.matrix.shape
    names = [f"{layer.name}_packed", f"{layer.name}_scale"]
    unused = ["", ""]  # zero points (2^(bits-1) when absent) and the group index
    node = helper.make_node(
        "MatMulNBits",
        [layer.node.input[0], *names, *([*unused, layer.bias] if layer.bias else [])],
        list(layer.node.output),
        layer.node.name,
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=block_size,
        accuracy_level=accuracy_level,
    )
    tensors = map(numpy_helper.from_array, (packed, scale), names)
    return Part([node], list(tensors))


def pack_blocks(
    matrix: NDArray[np.float32], bits: int, block_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize blocks of a matrix and pack them as MatMulNBits reads them.

    onnxruntime's own MatMulNBitsQuantizer is no help here: its symmetric rule is another
    (max|w| / 2^(bits-1), 4 dB worse at 4 bits), it skips Gemm silently, and importing it
    reconfigures the root logger.

    Args:
        matrix: (outputs, inputs); rows are padded with zeros to whole blocks.
        bits: 2, 4 or 8.
        block_size: weights of a row that share a scale.

    Returns:
        Integers plus 2^(bits-1), low bits first, (outputs, blocks, block_size · bits / 8); and
        scales, (outputs, blocks).
    """
    outputs, inputs = matrix.shape
    blocks = -(-inputs // block_size)
    padded = np.pad(matrix, ((0, 0), (0, blocks * block_size - inputs)))
    integers, scale = quantize_symmetric(padded.reshape(-1, block_size), bits)
    per_byte = 8 // bits
    codes = (integers + 2 ** (bits - 1)).astype(np.uint8).reshape(outputs, blocks, -1, per_byte)
    shifts = (bits * np.arange(per_byte)).astype(np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(codes << shifts, axis=-1)
    return packed, scale.reshape(outputs, blocks)


def _dequantized(layer: Layer, bits: int, *, per_channel: bool) -> Part:
    # Cast and Mul rather than DequantizeLinear: onnxruntime computes these two once, on loading,
    # but a DequantizeLinear at every call (a 16 × 32 convolution took 17 µs instead of 11).
    integers, scale = layer.quantized(bits, per_channel=per_channel)
    names = [f"{layer.name}_integers", f"{layer.name}_scale"]
    floats, weight = f"{layer.output}_floats", f"{layer.output}_weight"
    node = onnx.NodeProto()
    node.CopyFrom(layer.node)
    node.input[1] = weight
    nodes = [
        helper.make_node("Cast", [names[0]], [floats], to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, names[1]], [weight]),
        node,
    ]
    return Part(nodes, [stored(names[0], integers, bits), numpy_helper.from_array(scale, names[1])])
