"""The keys of a device in a sweep spec."""

import re
from collections.abc import Iterable
from typing import Annotated, Final, Self

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from qb_cluster.spec.keys import LONGEST_LABEL, NAME, Keys, OneOrMore, form

DEVICES: Final = ("cpu",)
"""Any node; names of the user's own are for nodes with labels."""
ACCELERATOR: Final = "qb/accelerator"
_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
# What Ray lets a node say about itself, which is what Kubernetes lets it say.
_LABEL_VALUE: Final = f"^{_LABEL}$"
_LABEL_KEY: Final = f"^([A-Za-z0-9]([A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?/)?{_LABEL}$"


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


DeviceText = Annotated[
    str, AfterValidator(_known_device), Field(json_schema_extra={"enum": list(DEVICES)})
]
LabelKey = Annotated[
    str, AfterValidator(_label_key), Field(json_schema_extra={"pattern": _LABEL_KEY})
]
LabelValue = Annotated[
    str, AfterValidator(_label_value), Field(json_schema_extra={"pattern": _LABEL_VALUE})
]
Labels = Annotated[
    dict[LabelKey, LabelValue],
    Field(min_length=1, json_schema_extra={"additionalProperties": False}),
]


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

    name: Annotated[str, Field(pattern=NAME, max_length=LONGEST_LABEL)]
    """`cpu`, which is any node; or a name of your own for the nodes that have the `labels`."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of every session on it."""
    labels: Labels = Field(default_factory=dict)
    """What a node must say of itself to be this device: all of these, like `qb/board: rpi5`."""
    backends: OneOrMore[str] = Field(default_factory=list)
    """Labels of the sweep's backends that run there. Default: all of them."""
    ssh: SshKeys | None = None
    """A board without Ray, and how to reach it."""
    gpus: int = Field(default=0, ge=0, le=1)
    """1 for a GPU of its own, which is then all that the backend computes on."""
    accelerator: LabelValue | None = None
    """The accelerator that its nodes must have: short for the label `qb/accelerator`, and a GPU."""
    prepared_on: Labels = Field(default_factory=dict)
    """Labels of the nodes that convert and quantize for it: it needs the runtime alone then."""

    @model_validator(mode="after")
    def _is_known_or_has_labels(self) -> Self:
        of_nodes = [key for key in ("labels", "gpus", "accelerator") if getattr(self, key)]
        if self.ssh and of_nodes:
            raise ValueError(f"{of_nodes[0]}: for nodes of Ray; leave it out, or 'ssh'")
        if self.accelerator and ACCELERATOR in self.labels:
            raise ValueError(f"'accelerator' is the label {ACCELERATOR}; give one of them")
        if self.prepared_on and (self.gpus or self.accelerator):
            raise ValueError("prepared_on: artifacts for a GPU are made on it; leave it out")
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


DeviceName = Annotated[
    Annotated[DeviceText, Tag("<lone>")] | Annotated[DeviceKeys, Tag("<mapping>")],
    Discriminator(form),
]
IncludedDevice = Annotated[
    Annotated[str, Tag("<lone>")] | Annotated[DeviceKeys, Tag("<mapping>")],
    Discriminator(form),
]
"""A lone name may be that of a device of the sweep; that is seen when entries are made."""
