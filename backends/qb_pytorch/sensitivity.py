"""Per-layer sensitivity: what quantizing one layer, or all but one, does to the outputs.

Everything before a layer computes what it computed without the change: floats where only this
layer is quantized, the quantized model's activations where all others are. So each batch runs
once in float and once quantized, and then, for each layer, from that layer on; see
``prefix_reuse``. The first example of the inputs is run both ways for each layer, and a layer
whose outputs are not the same to the bit is run whole.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from qb_cluster.catalog.layer_weights import same_bits
from qb_cluster.contracts import Arrays, LayerSensitivity, LoadModel, Quantization
from qb_cluster.quantization.gaussian import decibels, expected_weight_sqnr_db, weight_sqnr_db
from qb_pytorch import calibration, fake_quantization, layers, modules, simulated
from qb_pytorch.prefix_reuse import Recording, ReplayError, record, replay
from qb_pytorch.spelled_out import spell_out

BATCH: Final = 64


def layer_sensitivity(
    model: LoadModel,
    quantization: Quantization,
    examples: Arrays | None,
    inputs: Arrays,
    *,
    reuse: bool = True,
) -> list[LayerSensitivity]:
    """Measure the sensitivity of every layer that the scheme quantizes, embeddings too.

    In mode ``only``, one layer's weight and input are rounded and all else is float; in mode
    ``all_but``, one layer is float and all else is as in the simulated cell. Embeddings multiply
    nothing: their ``macs`` are 0, and they round no input.

    Args:
        model: gives the float model.
        quantization: simulated, whatever its ``execution`` says.
        examples: calibration examples; given exactly when activations are static.
        inputs: evaluation inputs by name, examples along axis 0.
        reuse: whether activations before a layer are reused; the results are the same.

    Returns:
        Two rows a layer, ``only`` before ``all_but``, layers in the model's order.

    Raises:
        PlugInError: see ``PyTorchBackend.quantize``.
        NonFiniteError: weights, or activations of calibration, are NaN or infinite.
    """
    module = modules.own_copy(model)
    together = same_bits(module)
    bench = _Bench(spell_out(module), quantization, examples)
    tensors = modules.tensors(inputs)
    first = {name: tensor[:1] for name, tensor in tensors.items()}
    macs = layers.count_macs(bench.module, first).layers
    trusted = set(_trusted(bench, first)) if reuse else set()
    noise = dict.fromkeys(_runs(bench), 0.0)
    signal = 0.0
    for batch in calibration.batches(tensors, BATCH):
        bench.quantize(frozenset())
        whole = record(bench.module, batch)
        reference = _primary(whole.output)
        signal += _power(reference)
        recordings = {"only": whole}
        bench.quantize(bench.everything)
        recordings["all_but"] = record(bench.module, batch)
        for mode, layer in noise:
            bench.quantize(bench.quantized(mode, layer))
            recording = recordings[mode]
            start = bench.first_use(recording, layer) if (mode, layer) in trusted else 0
            outputs = _primary(replay(bench.module, batch, recording, start))
            noise[mode, layer] += _power(outputs - reference)
    return [
        bench.row(layer, mode, macs, decibels(signal, found), together.get(layer, (layer,)))
        for (mode, layer), found in noise.items()
    ]


def _power(values: torch.Tensor) -> float:
    return float(values.to(torch.float64).square().sum())


def _primary(output: Any) -> torch.Tensor:
    """Give the first output, the one that metrics look at."""
    return next(iter(modules.named_outputs(output).values()))


def _runs(bench: "_Bench") -> Iterator[tuple[Any, str]]:
    for layer in bench.layers:
        yield "only", layer
        yield "all_but", layer


def _trusted(bench: "_Bench", example: Mapping[str, torch.Tensor]) -> Iterator[tuple[Any, str]]:
    """Give the runs in which reusing what comes before the layer changes no bit."""
    bench.quantize(frozenset())
    recordings = {"only": record(bench.module, example)}
    bench.quantize(bench.everything)
    recordings["all_but"] = record(bench.module, example)
    for mode, layer in _runs(bench):
        bench.quantize(bench.quantized(mode, layer))
        recording = recordings[mode]
        whole = _primary(replay(bench.module, example, recording, 0))
        try:
            start = bench.first_use(recording, layer)
            reused = _primary(replay(bench.module, example, recording, start))
        except ReplayError:
            continue
        if torch.equal(whole, reused):
            yield mode, layer


@dataclass(frozen=True, slots=True)
class _Weight:
    parameter: torch.nn.Parameter
    exact: torch.Tensor
    rounded: torch.Tensor
    owners: frozenset[str]


class _Bench:
    """A model whose layers can be quantized and made float again, one by one."""

    def __init__(
        self, module: torch.nn.Module, quantization: Quantization, examples: Arrays | None
    ) -> None:
        self.module = module
        self.scheme = quantization.scheme
        self.bits = layers.bits_of_layers(module, quantization)
        self._asked = quantization.bits
        rounding = simulated.activations(module, quantization, self.bits, examples)
        rounded = simulated.rounded_weights(module, self.scheme, self.bits)
        self._weights = [
            _Weight(
                parameter,
                parameter.data,
                rounded[name],
                frozenset(
                    owner for owner in self.bits if module.get_submodule(owner).weight is parameter
                ),
            )
            for name, (_, parameter) in layers.weights(module, self.bits).items()
        ]
        self.everything = frozenset(self.bits)
        self.layers = [name for name, _ in module.named_modules() if name in self.bits]
        self._quantized: frozenset[str] = frozenset()
        for name, given in rounding.inputs.items():
            self._attach(name, fake_quantization.fake_quantizer(**given))
        for name, (place, clip, given) in rounding.outputs.items():
            quantize = fake_quantization.fake_quantizer(**given)
            self._attach_output(name, place, fake_quantization.output_hook(quantize, clip))

    def _attach_output(self, name: str, place: str, rounded: fake_quantization.OutputHook) -> None:
        def hook(owner: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
            return rounded(owner, args, output) if name in self._quantized else None

        self.module.get_submodule(place).register_forward_hook(hook)

    def _attach(self, name: str, quantize: fake_quantization.FakeQuantizer) -> None:
        def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            return (quantize(args[0]), *args[1:]) if name in self._quantized else None

        self.module.get_submodule(name).register_forward_pre_hook(hook)

    def quantized(self, mode: str, layer: str) -> frozenset[str]:
        """Give the layers that are quantized in a run; what is tied to one goes with it."""
        tied = self._tied(layer)
        return tied if mode == "only" else self.everything - tied

    def quantize(self, names: frozenset[str]) -> None:
        """Quantize these layers, and make the others float."""
        self._quantized = names
        for weight in self._weights:
            weight.parameter.data = weight.rounded if weight.owners & names else weight.exact

    def first_use(self, recording: Recording, layer: str) -> int:
        """Give the first call that the layer's weight, or its input's rounding, can change."""
        return recording.first_use({self.module.get_submodule(name) for name in self._tied(layer)})

    def row(
        self,
        layer: str,
        mode: Any,
        macs: Mapping[str, int],
        sqnr_db: float,
        together: tuple[str, ...],
    ) -> LayerSensitivity:
        """State what was measured."""
        weight = next(weight for weight in self._weights if layer in weight.owners)
        owner, own = self.module.get_submodule(layer), self.bits[layer]
        found = expected = None
        if mode == "only":
            exact = weight.exact.to(torch.float32).numpy()
            found = weight_sqnr_db(exact, weight.rounded.to(torch.float32).numpy())
            expected = expected_weight_sqnr_db(exact.shape, self.scheme, own)
        return LayerSensitivity(
            layer=layer,
            parameters=weight.exact.numel(),
            macs=macs.get(layer, 0),
            mode=mode,
            bits=str(own if mode == "only" else self._asked),
            sqnr_db=sqnr_db,
            weight_sqnr_db=found,
            expected_weight_sqnr_db=expected,
            kind=layers.kind_of(owner),
            shape=tuple(weight.exact.movedim(layers.channel_axis(owner), 0).shape),
            weight=next(name for name in self.layers if name in weight.owners),
            same_bits=tuple(name for name in together if name in self.bits),
        )

    def _tied(self, layer: str) -> frozenset[str]:
        return next(weight.owners for weight in self._weights if layer in weight.owners)
