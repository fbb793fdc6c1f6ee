"""Why the agent did not do what it was asked."""


class Refusal(Exception):  # noqa: N818  it crosses the wire as {"error": kind, "message": …}
    """A typed refusal.

    Args:
        kind: ``unsupported``, ``invalid``, ``no_space``, ``no_memory``, ``damaged``, ``setup``
            or ``failed``.
        message: what, where, what to do next.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
