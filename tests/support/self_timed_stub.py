"""A backend whose executables time themselves, as if by an accelerator's clock."""

import time

from worker_stubs import Stub

NANOSECONDS = {"float": 3_000, "other": 1_000}
WALL_S = 2e-4
PEAK_BYTES = 12_345
TRANSFERS = []


class SelfTimed(Stub):
    def open(self, artifact, model, threads):
        kind = "float" if artifact.data.startswith(b"float") else "other"
        return Executable(super().open(artifact, model, threads), NANOSECONDS[kind])


class Executable:
    def __init__(self, run, nanoseconds):
        self._run = run
        self._nanoseconds = nanoseconds

    def __call__(self, inputs):
        return self._run(inputs)

    def stopwatch(self, inputs):
        TRANSFERS.append(len(inputs["input"]))

        def run():
            time.sleep(WALL_S)  # what the host sees is longer than what the device took
            return self._nanoseconds

        return run

    def peak_memory_bytes(self):
        return PEAK_BYTES


class QuantizedAlone(SelfTimed):
    """The float artifact runs where nothing times itself."""

    def open(self, artifact, model, threads):
        if artifact.data.startswith(b"float"):
            return Stub.open(self, artifact, model, threads)
        return super().open(artifact, model, threads)
