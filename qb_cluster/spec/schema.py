"""The keys of a sweep spec: what pydantic validates, and the JSON Schema that editors read.

Only the border: which keys there are, which values they take, and that names exist. What the
values mean together is settled in ``resolve``.
"""

import json
import re
from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, Final, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    Tag,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Bits, Calibration, Latency, Measure, ObserverName
from qb_cluster.errors import PlugInError
from qb_cluster.spec.sweep import Axis, Requested

DEVICES: Final = ("cpu",)
ACCELERATOR: Final = "qb/accelerator"
"""Any node; names of the user's own are for nodes with labels."""
BITS_PATTERN: Final = "^w([2-9]|1[0-6])(a([2-9]|1[0-6]))?$"
DEFAULT_TIMEOUT_S: Final = 600.0
MOST_RETRIES: Final = 10
LONGEST_LABEL: Final = 80  # characters: tables are read by people
_LONGEST_TIME: Final = 30 * 86_400.0  # seconds; keeps deadlines within what clocks can add
_NAME: Final = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
# What Ray lets a node say about itself, which is what Kubernetes lets it say.
_LABEL_VALUE: Final = f"^{_LABEL}$"
_LABEL_KEY: Final = f"^([A-Za-z0-9]([A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?/)?{_LABEL}$"
_LARGEST_SEED: Final = 2**32 - 1  # what every random generator takes
_CALIBRATION, _LATENCY, _MEASURE = Calibration(), Latency(), Measure()

T = TypeVar("T")


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


class _Listed:
    """Lets one entry stand for a list of one, in the validation and in the JSON Schema."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_as_list, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


ZeroOrMore = Annotated[list[T], _Listed()]
OneOrMore = Annotated[list[T], Field(min_length=1), _Listed()]


class Keys(BaseModel):
    """A mapping in the YAML. No unknown keys, no silent conversions."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        model_title_generator=lambda keys: keys.__name__.removesuffix("Keys"),
    )


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


def unknown_device(name: str, own: Iterable[str] = ()) -> str:
    """Say that a device is unknown, and which are known: ours, and those of the sweep's own."""
    return f"unknown device '{name}'; known: {', '.join(dict.fromkeys([*DEVICES, *own]))}"


def _known_device(name: str) -> str:
    if name not in DEVICES:
        raise ValueError(unknown_device(name))
    return name


def _label_key(key: str) -> str:
    if not re.fullmatch(_LABEL_KEY, key):
        raise ValueError(f"'{key}' is no label of a node; labels are like qb/board or board")
    return key


def _label_value(value: str) -> str:
    if not re.fullmatch(_LABEL_VALUE, value):
        raise ValueError(
            f"'{value}' is no value of a label: that is 1 to 63 letters, digits, '.', '_' and "
            "'-', a letter or digit first and last"
        )
    return value


def _bits_as_text(value: Any) -> Any:
    match value:
        case int() if not isinstance(value, bool):
            raise ValueError(f"write w{value}")
        case _:
            return value


def _form(value: Any) -> str:
    return "<mapping>" if isinstance(value, dict | Keys) else "<lone>"


DeviceText = Annotated[
    str, AfterValidator(_known_device), Field(json_schema_extra={"enum": list(DEVICES)})
]
LabelKey = Annotated[
    str, AfterValidator(_label_key), Field(json_schema_extra={"pattern": _LABEL_KEY})
]
LabelValue = Annotated[
    str, AfterValidator(_label_value), Field(json_schema_extra={"pattern": _LABEL_VALUE})
]


class NamedKeys(Keys):
    """A plug-in with options, or under a label of its own."""

    name: str
    """A registered name, an import path `package.module:callable`, or (models) a model file."""
    label: Annotated[str, AfterValidator(_printable), Field(max_length=LONGEST_LABEL)] | None = None
    """What tables and rules call it. Default: the name, with the options in brackets."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments for the callable."""


class SshKeys(Keys):
    """How to reach a board that has no Ray. What is left out is left to `~/.ssh/config`."""

    host: Annotated[str, Field(min_length=1)]
    """Name or address, or an alias of `~/.ssh/config`."""
    user: str = ""
    """Who to log in as."""
    port: int = Field(default=0, ge=0, le=65535)
    """TCP port."""
    python: Annotated[str, Field(min_length=1)] = "python3"
    """The Python there: 3.8 or newer, with NumPy and tflite-runtime or ai-edge-litert."""
    folder: str = ""
    """Where its agent may write; its temporary folder otherwise."""
    known_hosts: str = ""
    """File with the keys of known hosts. They are always checked."""
    key: str = ""
    """File with the private key. There are no passwords."""


class DeviceKeys(Keys):
    """A device and its share of the cores."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {
                "anyOf": [
                    {"required": ["labels"]},
                    {"required": ["ssh"]},
                    {"required": ["accelerator"]},
                    {"required": ["gpus"], "properties": {"gpus": {"minimum": 1}}},
                ]
            },
            "then": {"properties": {"name": {"not": {"enum": list(DEVICES)}}}},
            "else": {"properties": {"name": {"enum": list(DEVICES)}}},
        }
    )

    name: Annotated[str, Field(pattern=_NAME, max_length=LONGEST_LABEL)]
    """`cpu`, which is any node; or a name of your own for the nodes that have the `labels`."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of every session on it."""
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, min_length=1, json_schema_extra={"additionalProperties": False}
    )
    """What a node must say of itself to be this device: all of these, like `qb/board: rpi5`."""
    backends: OneOrMore[str] = Field(default_factory=list)
    """Labels of the sweep's backends that run there. Default: all of them."""
    ssh: SshKeys | None = None
    """A board without Ray, and how to reach it."""
    gpus: int = Field(default=0, ge=0, le=1)
    """1 for a GPU of its own, which is then all that the backend computes on."""
    accelerator: LabelValue | None = None
    """The accelerator that its nodes must have: short for the label `qb/accelerator`, and a GPU."""

    @model_validator(mode="after")
    def _is_known_or_has_labels(self) -> Self:
        of_nodes = [key for key in ("labels", "gpus", "accelerator") if getattr(self, key)]
        if self.ssh and of_nodes:
            raise ValueError(f"{of_nodes[0]}: for nodes of Ray; leave it out, or 'ssh'")
        if self.accelerator and ACCELERATOR in self.labels:
            raise ValueError(f"'accelerator' is the label {ACCELERATOR}; give one of them")
        is_own = bool(of_nodes or self.ssh)
        if self.name in DEVICES and is_own:
            what = "a board takes" if self.ssh else "nodes with labels or GPUs take"
            raise ValueError(f"'{self.name}' is any node; {what} another name")
        if self.name not in DEVICES and not is_own:
            raise ValueError(
                f"{unknown_device(self.name)}; a name of your own takes labels: {{qb/board: …}}, "
                "gpus: 1 or ssh: {host: …}"
            )
        return self


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
    Discriminator(_form),
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
DeviceName = Annotated[
    Annotated[DeviceText, Tag("<lone>")] | Annotated[DeviceKeys, Tag("<mapping>")],
    Discriminator(_form),
]
IncludedDevice = Annotated[
    Annotated[str, Tag("<lone>")] | Annotated[DeviceKeys, Tag("<mapping>")],
    Discriminator(_form),
]
"""A lone name may be that of a device of the sweep; that is seen when entries are made."""
BitsLabel = Annotated[str, BeforeValidator(_bits_as_text)]


# Settings


Samples = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=_LARGEST_SEED)]
Percentile = Annotated[float, Field(ge=50, le=100)]
Retries = Annotated[int, Field(ge=0, le=MOST_RETRIES)]


class CalibrationKeys(Keys):
    """How static activation ranges are found. Each key takes a value, or a list: an axis."""

    samples: OneOrMore[Samples] = [_CALIBRATION.samples]
    """Calibration examples used at most."""
    seed: OneOrMore[Seed] = [_CALIBRATION.seed]
    """Decides which of them."""
    observer: OneOrMore[ObserverName] = [_CALIBRATION.observer]
    """What is made of them: `minmax`, `moving_average`, `percentile`, `mse` or `entropy`."""
    percentile: OneOrMore[Percentile] = [_CALIBRATION.percentile]
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
    """Of every interval."""
    latency: Annotated[
        Annotated[bool, Tag("<lone>")] | Annotated[LatencyKeys, Tag("<mapping>")],
        Discriminator(_form),
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

    sweep: Annotated[str, Field(pattern=_NAME, max_length=100)]
    """Name of the sweep, and of its folder of results."""
    models: OneOrMore[ModelName]
    """Registered names, import paths `package.module:callable`, model files, or mappings."""
    datasets: OneOrMore[DatasetName]
    """Datasets: registered names, import paths, or mappings."""
    schemes: OneOrMore[SchemeName]
    """Quantization schemes, like `weight_only`, `dynamic`, `static`, `fp16`."""
    bits: OneOrMore[BitsText] = []
    """Bit-widths: `w4` (weights alone), `w4a8` (activations too). Float formats have their own."""
    backends: OneOrMore[BackendName]
    """Runtimes, like `pytorch`, `tflite`, `onnxruntime`."""
    devices: OneOrMore[DeviceName] = ["cpu"]
    """Devices: `cpu`, `{name: cpu, threads: 2}`, or nodes by their labels under your own name."""
    execution: OneOrMore[Requested] = ["auto"]
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
