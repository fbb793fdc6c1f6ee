"""Every error a user can meet.

::

    QuantBenchError
    ├── SpecError            the YAML is wrong: file:line:column (exit code 2)
    ├── RunFolderError       the output folder cannot be used    (exit code 2)
    ├── PoolError            no workers can be had               (exit code 2)
    │   └── BoardError       a board cannot be used as it is     (exit code 2)
    │       └── BoardUnreachableError  nobody answers: it may be off, or come back
    ├── BoardLostError       the connection to a board was lost: worth another attempt
    ├── BoardCrashedError    what runs artifacts on a board died by itself
    ├── NodeConfigError      the node's own file is wrong        (exit code 2)
    ├── QueryError           what a report is asked for is wrong (exit code 2)
    ├── NothingRunsError     no cell of the plan can run here    (exit code 2)
    └── CellError            one cell ends with a typed status; the others go on
        ├── PlugInError      a model, dataset, … cannot be found or raised     → failed
        ├── DataError        a dataset breaks its contract, or leaks           → failed
        ├── NonFiniteError   NaN or infinity in outputs, weights, calibration  → failed
        ├── UnsupportedError the backend finds out late that it cannot         → unsupported
        ├── OutOfMemoryError the artifact is larger than the board's memory    → oom
        ├── NotAppliedError  the "quantized" artifact is still float           → not_applied
        ├── BaselineMismatchError  the float artifact is not the user's model  → baseline_mismatch
        └── KernelMismatchError  a kernel does not compute its scheme          → kernel_mismatch

Messages say what, where, and what to do next.
"""

from typing import ClassVar

from qb_cluster.exit_codes import ExitCode


class QuantBenchError(Exception):
    """The root: anything the user, not the programmer, has to read."""

    exit_code: ClassVar[ExitCode] = ExitCode.CANNOT_RUN


class SpecError(QuantBenchError):
    """The sweep spec is wrong. The message starts with ``file:line:column``."""


class RunFolderError(QuantBenchError):
    """The output folder belongs to another sweep, is in use, or cannot be written."""


class PoolError(QuantBenchError):
    """No workers can be started as the spec demands."""


class BoardError(PoolError):
    """A board, or another Python here, cannot be used until somebody changes something."""


class BoardUnreachableError(BoardError):
    """Nobody answers at a board's address; worth asking again where one has answered before."""


class BoardLostError(QuantBenchError):
    """The connection to a board ended in the middle: network, reboot, or somebody ended it."""


class BoardCrashedError(QuantBenchError):
    """The agent on a board died by itself, e.g. in a kernel, while the connection stood."""


class NothingRunsError(QuantBenchError):
    """No cell of the plan can run: no backend is installed, or none supports what is asked."""


class QueryError(QuantBenchError):
    """A condition, a column or a tolerance that a report is asked for makes no sense."""


class CellError(QuantBenchError):
    """One cell cannot give a result; ``status`` is what its row says."""

    status: ClassVar[str] = "failed"


class PlugInError(CellError):
    """A named model, dataset, scheme, metric or backend cannot be found, or raised."""


class DataError(CellError):
    """A dataset breaks its contract, or shares examples between calibration and evaluation."""


class NonFiniteError(CellError):
    """A model's outputs, its weights or what calibration sees hold NaN or infinity."""


class UnsupportedError(CellError):
    """The backend finds out only while quantizing that it cannot."""

    status: ClassVar[str] = "unsupported"


class OutOfMemoryError(CellError):
    """An artifact, or what running it takes, is larger than the memory a board has free."""

    status: ClassVar[str] = "oom"


class NotAppliedError(CellError):
    """The artifact that should be quantized is still float."""

    status: ClassVar[str] = "not_applied"


class BaselineMismatchError(CellError):
    """A float artifact's outputs are far from the model's in its own framework."""

    status: ClassVar[str] = "baseline_mismatch"


class KernelMismatchError(CellError):
    """A native kernel's outputs are far from what its own scheme gives in simulation."""

    status: ClassVar[str] = "kernel_mismatch"
