"""Before anything starts: is every board there, and will it do?"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from qb_cluster.boards.board import Board
from qb_cluster.contracts import Device, SshBoard
from qb_cluster.dispatch.events import Waiting
from qb_cluster.errors import BoardCrashedError, BoardError, BoardLostError
from qb_cluster.spec import NamedBackend

_AT_ONCE = 16


def board_runtimes(
    devices: Iterable[Device], backends: Sequence[NamedBackend]
) -> dict[SshBoard, tuple[str, ...]]:
    """Give the modules that each board of a sweep needs; a board that runs nothing is left out."""
    found: dict[SshBoard, dict[str, None]] = {}
    for device in devices:
        if device.ssh is not None:
            modules = found.setdefault(device.ssh, {})
            for backend in backends:
                is_meant = not device.backends or backend.ref.label in device.backends
                module = getattr(backend.backend, "board_runtime", None)
                if module is not None and is_meant:
                    modules[module] = None
    return {board: tuple(modules) for board, modules in found.items() if modules}


def unmet_boards(
    devices: Sequence[Device], runtimes: Mapping[SshBoard, Sequence[str]]
) -> list[str]:
    """Visit each board; tell what is wrong with which, one sentence each, none where all is well.

    Args:
        devices: of the sweep; those without a board do not matter.
        runtimes: what is to be loaded on each board.
    """
    if problems := _one_board_twice(device for device in devices if device.ssh in runtimes):
        return problems
    most: dict[SshBoard, tuple[int, str]] = {}
    for device in devices:
        if device.ssh is not None and device.ssh in runtimes:
            most[device.ssh] = max(most.get(device.ssh, (0, "")), (device.threads, device.name))

    def visit(board: SshBoard) -> str | None:
        threads, name = most[board]
        try:
            for runtime in runtimes[board]:
                with Board.connect(board, runtime, "", "") as agent:
                    cores = int(agent.facts["machine"]["cores"] or 1)
        except (BoardError, BoardLostError, BoardCrashedError) as error:
            return f"device '{name}': {error}"
        if cores >= threads:
            return None
        return (
            f"device '{name}' asks for {threads} threads and its board has {cores} core"
            f"{'' if cores == 1 else 's'}; lower devices: threads"
        )

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [why for why in pool.map(visit, most) if why is not None]


def _one_board_twice(devices: Iterable[Device]) -> list[str]:
    """Tell of boards that the spec reaches in two ways, under one lock: each would end the other.

    With folders of their own they have locks of their own.
    """
    seen: dict[tuple[str, int, str], Device] = {}
    problems = []
    for device in devices:
        if device.ssh is not None:
            board = device.ssh
            first = seen.setdefault((board.host, board.port, board.folder), device)
            if first.ssh != device.ssh:
                problems.append(
                    f"devices '{first.name}' and '{device.name}' are one board, "
                    f"'{board.host}', with two users, keys or Pythons; give each a sweep of its own"
                )
    return problems


def waiting_for(board: SshBoard, holder: str) -> Waiting:
    """Say that others have a board."""
    text = f"board '{board.host}' is taken by {holder}; waiting until it is free"
    return Waiting(text, is_taken=True)
