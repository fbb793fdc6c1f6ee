"""Plug-ins of a stranger: found by import path, without a framework."""

from qb_cluster.contracts import Quantization, Scheme, Support


class _Backend:
    requires: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    takes: tuple[str, ...] = ("object",)

    def convert(self, model, example):
        raise NotImplementedError

    def quantize(self, model, baseline, quantization, calibration):
        raise NotImplementedError

    def open(self, artifact, model, threads):
        raise NotImplementedError


class Half(_Backend):
    """Native at 8-bit weights, simulated from 3 bits on, nothing below."""

    name = "half"

    def support(self, quantization: Quantization) -> Support:
        if quantization.bits.weight < 3:
            return Support(supported=False, reason="below 3 bits")
        if quantization.execution == "native" and quantization.bits.weight != 8:
            return Support(supported=False, reason="its kernels are 8-bit")
        return Support(supported=True)


class Portable(Half):
    """Half, on boards too."""

    board_runtime = "stub_plugins"


class Anything(_Backend):
    """Native at every bit-width."""

    name = "anything"

    def __init__(self, flavour: str = "plain") -> None:
        self.flavour = flavour

    def support(self, quantization: Quantization) -> Support:
        return Support(supported=True, reason="on trust" if quantization.bits.weight > 8 else "")


class Kernels(_Backend):
    """Native at every bit-width, and unable to simulate any."""

    name = "kernels"
    takes = ("torch", "object")

    def support(self, quantization: Quantization) -> Support:
        native = quantization.execution == "native"
        return Support(supported=native, reason="" if native else "it has kernels alone")


class Quoting(_Backend):
    """Quotes the bits it was asked for."""

    name = "quoting"

    def support(self, quantization: Quantization) -> Support:
        return Support(supported=False, reason=f"{quantization.bits} are too many, w8a8 is not")


class Onnx(Kernels):
    """Takes ONNX files."""

    name = "onnx"
    takes = ("onnx",)


class Graphs(Half):
    """Half, but files of ONNX are never simulated."""

    name = "graphs"
    takes = ("object", "onnx")

    def refuses(self, kind: str, quantization: Quantization) -> str:
        is_refused = kind == "onnx" and quantization.execution == "simulated"
        return "a graph has no layers" if is_refused else ""


class OfFiles(Half):
    """Half, and of models that it takes it simulates files of ONNX alone."""

    name = "of-files"
    takes = ("torch", "object", "onnx")
    simulates = ("onnx",)


class Torch(Anything):
    """Takes what most of the others do not."""

    name = "torch"
    takes = ("torch",)


class Uninstalled(Anything):
    """Needs what nobody has."""

    name = "uninstalled"
    requires = ("json", "module_that_nobody_has.part")


class Undecided(Anything):
    """Cannot even say what it supports."""

    name = "undecided"

    def support(self, quantization: Quantization) -> Support:
        raise RuntimeError("no idea")


def not_a_backend() -> object:
    return object()


def not_a_scheme() -> str:
    return "w8"


def failing_backend() -> object:
    raise ValueError("the driver is missing\nand more of it")


def coarse(granularity: str = "per_tensor") -> Scheme:
    return Scheme("coarse", activations="none", granularity=granularity)


def __getattr__(name: str) -> object:
    """Stand for models and datasets of any name: a plan calls none of them."""
    if name.startswith("__") or name == "nothing":
        raise AttributeError(name)
    return lambda: name
