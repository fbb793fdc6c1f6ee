"""The keys of a sweep spec: what pydantic validates, and the JSON Schema that editors read.

Only the border: which keys there are, which values they take, and that names exist. What the
values mean together is settled in ``resolve``.
"""

import json
from functools import partial
from typing import Annotated, Any, Final, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    Tag,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Bits, Calibration, Latency, Measure, ObserverName
from qb_cluster.contracts.judgement import Adjust
from qb_cluster.contracts.match import Axis
from qb_cluster.contracts.tolerance import Tolerance
from qb_cluster.errors import PlugInError
from qb_cluster.spec.device_keys import DeviceName, IncludedDevice
from qb_cluster.spec.keys import LONGEST_LABEL, NAME, Keys, OneOrMore, ZeroOrMore, form
from qb_cluster.spec.sweep import Requested

TOLERANCE_PATTERN: Final = (
    r"^\s*[0-9.]+([eE][+-]?[0-9]+)? *([pP][tT][sS]?|[pP][oO][iI][nN][tT][sS]?|%)?\s*$"
)
BITS_PATTERN: Final = "^w([2-9]|1[0-6])(a([2-9]|1[0-6]))?$"
DEFAULT_TIMEOUT_S: Final = 600.0
MOST_RETRIES: Final = 10
_LONGEST_TIME: Final = 30 * 86_400.0  # seconds; keeps deadlines within what clocks can add
_LARGEST_SEED: Final = 2**32 - 1  # what every random generator takes
_CALIBRATION, _LATENCY, _MEASURE = Calibration(), Latency(), Measure()

# Entries of the axes


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("a label has characters that can be seen, on one line")
    return text


def _existing(kind: plugins.Kind, entry: "str | NamedKeys") -> "str | NamedKeys":
    try:
        plugins.check(kind, entry if isinstance(entry, str) else entry.name)
    except PlugInError as error:
        raise ValueError(str(error)) from error
    return entry


def _bits(value: Any) -> Bits:
    match value:
        case int() if not isinstance(value, bool):
            raise ValueError(f"write w{value} (or w{value}a8 to quantize activations too)")
        case str():
            return _parsed(value)
        case _:
            raise ValueError(f"{json.dumps(value)} is no bit-width; write wN (w4) or wNaM (w4a8)")


def _parsed(text: str) -> Bits:
    try:
        return Bits.parse(text)
    except ValueError as error:
        where = "" if text in str(error) else f"'{text}': "
        raise ValueError(f"{where}{error}") from error


def _bits_as_text(value: Any) -> Any:
    match value:
        case int() if not isinstance(value, bool):
            raise ValueError(f"write w{value}")
        case _:
            return value


class NamedKeys(Keys):
    """A plug-in with options, or under a label of its own."""

    name: str
    """A registered name, an import path `package.module:callable`, or (models) a model file."""
    label: Annotated[str, AfterValidator(_printable), Field(max_length=LONGEST_LABEL)] | None = None
    """What tables and rules call it. Default: the name, with the options in brackets."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments for the callable."""


def label_for(entry: str | NamedKeys) -> str:
    """Give what tables call an entry: its label, else its name with its options."""
    if isinstance(entry, str):
        return entry
    if entry.label is not None or not entry.options:
        return entry.label or entry.name
    options = (
        f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for key, value in entry.options.items()
    )
    return f"{entry.name}[{','.join(options)}]"


def _fits_a_table(entry: str | NamedKeys) -> str | NamedKeys:
    label = label_for(entry)
    if len(label) > LONGEST_LABEL or not label.isprintable():
        raise ValueError(
            "give this entry a 'label': made of its name and options it would be "
            f"{len(label)} characters long, and tables take {LONGEST_LABEL} printable ones"
        )
    return entry


Named = Annotated[
    Annotated[str, Tag("<lone>")] | Annotated[NamedKeys, Tag("<mapping>")],
    Discriminator(form),
    AfterValidator(_fits_a_table),
]
ModelName = Annotated[Named, AfterValidator(partial(_existing, "model"))]
DatasetName = Annotated[Named, AfterValidator(partial(_existing, "dataset"))]
SchemeName = Annotated[Named, AfterValidator(partial(_existing, "scheme"))]
BackendName = Annotated[Named, AfterValidator(partial(_existing, "backend"))]
MetricName = Annotated[Named, AfterValidator(partial(_existing, "metric"))]
BitsText = Annotated[
    Bits,
    PlainValidator(_bits, json_schema_input_type=Annotated[str, Field(pattern=BITS_PATTERN)]),
    PlainSerializer(str),
]
BitsLabel = Annotated[str, BeforeValidator(_bits_as_text)]


def _tolerance(value: Any) -> Tolerance | None:
    match value:
        case None | Tolerance():
            return value
        case str():
            return Tolerance.parse(value)
        case int() | float() if not isinstance(value, bool):
            return Tolerance(float(value))
        case _:
            raise ValueError(f"{json.dumps(value)} is not a tolerance; write 1 pt or 1 %")


ToleranceText = Annotated[
    Tolerance | None,
    PlainValidator(
        _tolerance,
        json_schema_input_type=Annotated[str, Field(pattern=TOLERANCE_PATTERN)]
        | Annotated[float, Field(gt=0)]
        | None,
    ),
    PlainSerializer(lambda value: None if value is None else str(value)),
]


# Settings


Samples = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=_LARGEST_SEED)]
Percentile = Annotated[float, Field(ge=50, le=100)]
Retries = Annotated[int, Field(ge=0, le=MOST_RETRIES)]


class CalibrationKeys(Keys):
    """How static activation ranges are found. Each key takes a value, or a list: an axis."""

    samples: OneOrMore[Samples] = Field(default=[_CALIBRATION.samples])
    """Calibration examples used at most."""
    seed: OneOrMore[Seed] = Field(default=[_CALIBRATION.seed])
    """Decides which of them."""
    observer: OneOrMore[ObserverName] = Field(default=[_CALIBRATION.observer])
    """What is made of them: `minmax`, `moving_average`, `percentile`, `mse` or `entropy`."""
    percentile: OneOrMore[Percentile] = Field(default=[_CALIBRATION.percentile])
    """For the observer `percentile`: the central share of all values that is kept, in percent."""


class SetCalibrationKeys(Keys):
    """How static activation ranges are found, for the cells of a rule."""

    samples: Samples = _CALIBRATION.samples
    """Calibration examples used at most."""
    seed: Seed = _CALIBRATION.seed
    """Decides which of them."""
    observer: ObserverName = _CALIBRATION.observer
    """What is made of them."""
    percentile: Percentile = _CALIBRATION.percentile
    """For the observer `percentile`: the central share of all values that is kept, in percent."""


class LatencyKeys(Keys):
    """How latency is measured: batch of one, float and quantized in turns."""

    warmup_s: float = Field(default=_LATENCY.warmup_s, ge=0, le=_LONGEST_TIME)
    """Seconds of warm-up, both arms in turns, after at least one run each."""
    min_runs: int = Field(default=_LATENCY.min_runs, ge=1)
    """Timed runs of each arm, at least."""
    min_s: float = Field(default=_LATENCY.min_s, ge=0, le=_LONGEST_TIME)
    """Timed seconds of each arm, at least."""
    cap_s: float = Field(default=_LATENCY.cap_s, gt=0, le=_LONGEST_TIME)
    """Seconds for the whole measurement, at most."""
    seed: int = Field(default=_LATENCY.seed, ge=0, le=_LARGEST_SEED)
    """Decides which arm starts each block."""


class MeasureKeys(Keys):
    """What is measured, and on how much."""

    metric: MetricName = _MEASURE.metric.target
    """The metric of the comparison."""
    batch_size: int = Field(default=_MEASURE.batch_size, ge=1)
    """Examples to a call in the quality stage."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """Evaluation examples used at most, first ones first; `null` is all."""
    confidence: float = Field(default=_MEASURE.confidence, gt=0, lt=1)
    """Of every interval, and of every verdict."""
    tolerance: ToleranceText = None
    """The loss you accept: `1 pt` (points), `1 %` (of the float value), a number in the metric's
    unit, or `null` for none. Default: 1 pt for accuracy, none for other metrics."""
    adjust: Adjust = "holm"
    """Whether verdicts are adjusted for the number of cells: `holm`, or `none`."""
    latency: Annotated[
        Annotated[bool, Tag("<lone>")] | Annotated[LatencyKeys, Tag("<mapping>")],
        Discriminator(form),
    ] = True
    """Whether latency is measured, or how."""
    layers: bool = _MEASURE.layers
    """Whether simulated cells measure the sensitivity of each layer too."""


# Rules


class MatchKeys(Keys):
    """A partial match. On each axis: a label, a pattern like `digits-*`, or a list of them."""

    model: OneOrMore[str] = Field(default_factory=list)
    dataset: OneOrMore[str] = Field(default_factory=list)
    scheme: OneOrMore[str] = Field(default_factory=list)
    bits: OneOrMore[BitsLabel] = Field(default_factory=list)
    backend: OneOrMore[str] = Field(default_factory=list)
    device: OneOrMore[str] = Field(default_factory=list)
    execution: OneOrMore[str] = Field(default_factory=list)
    """What the plan shows: `native`, `simulated` or `unsupported`."""
    calibration: OneOrMore[str] = Field(default_factory=list)
    """What the plan shows, like `minmax`, `percentile[99.9]`, `mse[samples=32,seed=1]`."""

    @model_validator(mode="after")
    def _names_an_axis(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"name an axis to match: {', '.join(get_args(Axis))}")
        return self


class IncludeKeys(Keys):
    """A product of its own, added to the grid. Axes left out are taken from the sweep."""

    model: OneOrMore[Named] = Field(default_factory=list)
    dataset: OneOrMore[Named] = Field(default_factory=list)
    scheme: OneOrMore[Named] = Field(default_factory=list)
    bits: OneOrMore[BitsText] = Field(default_factory=list)
    backend: OneOrMore[Named] = Field(default_factory=list)
    device: OneOrMore[IncludedDevice] = Field(default_factory=list)
    execution: OneOrMore[Requested] = Field(default_factory=list)
    calibration: CalibrationKeys = Field(default_factory=CalibrationKeys)
    """Of the included static cells; keys left out are taken from the sweep."""

    @model_validator(mode="after")
    def _names_an_axis(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"name an axis to add to: {', '.join(get_args(Axis))}")
        return self


class SetKeys(Keys):
    """Settings that replace the sweep's. What is left out stays as it is."""

    calibration: SetCalibrationKeys = Field(default_factory=SetCalibrationKeys)
    measure: MeasureKeys = Field(default_factory=MeasureKeys)
    execution: Requested = "auto"
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, le=_LONGEST_TIME)
    timeout_retries: Retries = 0

    @model_validator(mode="after")
    def _sets_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"name a setting: {', '.join(SetKeys.model_fields)}")
        return self


class OverrideKeys(Keys):
    """Settings of their own for the cells that match."""

    when: MatchKeys
    """Which cells."""
    set: SetKeys
    """What is different for them."""


class SweepKeys(Keys):
    """A sweep: every combination of models, datasets, schemes, bits, backends and devices."""

    model_config = ConfigDict(title="QuantBench sweep")

    sweep: Annotated[str, Field(pattern=NAME, max_length=100)]
    """Name of the sweep, and of its folder of results."""
    models: OneOrMore[ModelName]
    """Registered names, import paths `package.module:callable`, model files, or mappings."""
    datasets: OneOrMore[DatasetName]
    """Datasets: registered names, import paths, or mappings."""
    schemes: OneOrMore[SchemeName]
    """Quantization schemes, like `weight_only`, `dynamic`, `static`, `fp16`."""
    bits: OneOrMore[BitsText] = Field(default=[])
    """Bit-widths: `w4` (weights alone), `w4a8` (activations too). Float formats have their own."""
    backends: OneOrMore[BackendName]
    """Runtimes, like `pytorch`, `tflite`, `onnxruntime`."""
    devices: OneOrMore[DeviceName] = Field(default=["cpu"])
    """Devices: `cpu`, `{name: cpu, threads: 2}`, or nodes by their labels under your own name."""
    execution: OneOrMore[Requested] = Field(default=["auto"])
    """`auto` (native where it exists, else simulated), `native`, `simulated`, or several."""
    calibration: CalibrationKeys = Field(default_factory=CalibrationKeys)
    """How static activation ranges are found; lists are an axis of static cells."""
    measure: MeasureKeys = Field(default_factory=MeasureKeys)
    """What is measured, and on how much."""
    timeout_s: float = Field(default=DEFAULT_TIMEOUT_S, gt=0, le=_LONGEST_TIME)
    """Seconds after which one stage of a cell is killed."""
    timeout_retries: Retries = 0
    """How often a stage that ran past `timeout_s` is tried again."""
    exclude: ZeroOrMore[MatchKeys] = Field(default_factory=list)
    """Cells of the grid that match any of these are dropped."""
    include: ZeroOrMore[IncludeKeys] = Field(default_factory=list)
    """Products added to the grid."""
    overrides: ZeroOrMore[OverrideKeys] = Field(default_factory=list)
    """Settings of their own for some cells; later ones win."""
    max_cells: Annotated[int, Field(ge=1)] | None = None
    """Refuse a plan with more cells than this, float baselines included."""


def json_schema() -> dict[str, Any]:
    """Give the JSON Schema of a sweep spec."""
    schema = SweepKeys.model_json_schema()
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}
