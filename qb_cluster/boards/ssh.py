"""A process on a board, over SSH. Host keys are always checked; keys alone log in."""

import asyncio
import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qb_cluster.boards.transport import Ending, LastLines
from qb_cluster.contracts import SshBoard
from qb_cluster.errors import BoardError, BoardUnreachableError
from qb_cluster.installation import install_line

if TYPE_CHECKING:
    import asyncssh

_CONNECT_S: Final = 10
_KEEPALIVE_S: Final = 5
_KEEPALIVES: Final = 3
_END_S: Final = 5.0


class SshProcess:
    """A process on a board; see ``transport.Process``."""

    def __init__(
        self,
        connection: "asyncssh.SSHClientConnection",
        process: "asyncssh.SSHClientProcess[bytes]",
    ) -> None:
        self._connection = connection
        self._process = process
        self._last_words = LastLines()
        self._keeping = asyncio.create_task(self._keep())

    async def write(self, data: bytes) -> None:
        """See ``transport.Process``."""
        import asyncssh

        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except asyncssh.Error as error:
            raise ConnectionError(str(error)) from error

    async def read(self, size: int) -> bytes:
        """See ``transport.Process``."""
        import asyncssh

        try:
            return await self._process.stdout.readexactly(size)
        except (asyncssh.Error, OSError) as error:
            raise EOFError(str(error)) from error

    async def end(self) -> Ending:
        """See ``transport.Process``."""
        with contextlib.suppress(OSError):
            self._process.stdin.write_eof()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait_closed(), _END_S)
            await asyncio.wait_for(self._keeping, _END_S)
        status, signal = self._process.exit_status, self._process.exit_signal
        self._keeping.cancel()
        self._connection.abort()  # sshd ends what still runs there; the agent leaves by itself
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connection.wait_closed(), _END_S)
        name = f"SIG{signal[0]}" if signal else ""
        return Ending(-1 if signal else status, name, str(self._last_words))

    async def _keep(self) -> None:
        import asyncssh

        with contextlib.suppress(asyncssh.Error, OSError):
            while text := await self._process.stderr.read(4096):
                self._last_words.add(text)


async def start_ssh(command: list[str], board: SshBoard) -> SshProcess:
    """Start a command on a board.

    Raises:
        BoardUnreachableError: nobody answers, or whoever does closes the connection: a board
            that boots or shuts down, or one with too many who log in at once.
        BoardError: it is not the one that is known, does not let us in or runs no command.
    """
    try:
        import asyncssh
    except ModuleNotFoundError as error:
        raise BoardError(
            f"board '{board.host}' needs asyncssh here: {install_line('ssh')}"
        ) from error
    known = _KnownHosts()
    try:
        options = _options(board)
        if options.known_hosts is None:
            raise BoardError(
                f"board '{board.host}': ~/.ssh/config says UserKnownHostsFile none, and host keys "
                "are always checked here; name a known_hosts file for this board"
            )
        known.files = options.known_hosts
        connection = await asyncssh.connect(
            # No config here: it is in the options, and was checked there.
            board.host,
            options=options,
            config=None,
            client_factory=lambda: _checking_client(known),
        )
    except (asyncssh.Error, asyncssh.KeyImportError, OSError, TimeoutError, ValueError) as error:
        kind = BoardUnreachableError if _may_pass(error) else BoardError
        raise kind(_why_not(board, error, known)) from error
    try:
        # Words are quoted once, for the login shell; exec, so that a signal's name comes back.
        text = f"exec {shlex.join(command)}"
        process = await connection.create_process(text, encoding=None)
    except (asyncssh.Error, OSError) as error:
        # Why a channel did not open is no proof: servers refuse a session by the same code.
        kind = BoardUnreachableError if connection.is_closed() else BoardError
        connection.abort()
        raise kind(f"board '{board.host}' lets us in but runs no command: {error}") from error
    return SshProcess(connection, process)


def _may_pass(error: Exception) -> bool:
    """Tell whether there may be a connection later though nobody changes anything."""
    import asyncssh

    if isinstance(error, asyncssh.ChannelOpenError):  # a jump host is there, and not the board
        return error.code == asyncssh.OPEN_CONNECT_FAILED
    if isinstance(error, asyncssh.DisconnectError):
        return error.code in {
            asyncssh.DISC_BY_APPLICATION,
            asyncssh.DISC_CONNECTION_LOST,
            asyncssh.DISC_SERVICE_NOT_AVAILABLE,
            asyncssh.DISC_TOO_MANY_CONNECTIONS,
        }
    return isinstance(error, OSError) and not error.filename


class _KnownHosts:
    """What became of the host key: filled in where it is not trusted."""

    files: Any = ()
    is_untrusted = False
    is_changed = False


def _checking_client(known: _KnownHosts) -> "asyncssh.SSHClient":
    import asyncssh

    class Client(asyncssh.SSHClient):
        def validate_host_public_key(
            self,
            host: str,
            addr: str,
            port: int,
            key: asyncssh.SSHKey,  # noqa: ARG002  asyncssh passes it
        ) -> bool:
            """Never trust a key that known_hosts lacks; note which case it is."""
            known.is_untrusted = True
            with contextlib.suppress(OSError, ValueError):
                files = known.files or str(Path("~/.ssh/known_hosts").expanduser())
                known.is_changed = bool(asyncssh.match_known_hosts(files, host, addr, port)[0])
            return False

    return Client()


def _options(board: SshBoard) -> "asyncssh.SSHClientConnectionOptions":
    import asyncssh

    given: dict[str, Any] = {}
    if board.user:
        given["username"] = board.user
    if board.port:
        given["port"] = board.port
    if board.known_hosts:
        given["known_hosts"] = str(Path(board.known_hosts).expanduser())
    if board.key:
        given["client_keys"] = [str(Path(board.key).expanduser())]
    return asyncssh.SSHClientConnectionOptions(
        config=(),  # ~/.ssh/config, read now, so that we see what it says of host keys
        host=board.host,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_kex=False,
        gss_auth=False,
        connect_timeout=_CONNECT_S,
        login_timeout=2 * _CONNECT_S,
        keepalive_interval=_KEEPALIVE_S,
        keepalive_count_max=_KEEPALIVES,
        **given,
    )


def _why_not(  # noqa: PLR0911  one return per reason
    board: SshBoard, error: Exception, known: _KnownHosts
) -> str:
    """Say why there is no connection, and what to do."""
    import asyncssh

    here = f"board '{board.host}'"
    port = f" -p {board.port}" if board.port else ""
    user = f"{board.user}@" if board.user else ""
    file = f" -f {shlex.quote(board.known_hosts)}" if board.known_hosts else ""
    option = f" -o UserKnownHostsFile={shlex.quote(board.known_hosts)}" if board.known_hosts else ""
    key = f" -i {shlex.quote(board.key)}" if board.key else ""
    by_hand = f"`ssh{port}{key}{option} {user}{board.host}`"
    name = f"[{board.host}]:{board.port}" if board.port not in {0, 22} else board.host
    if known.is_changed:
        return (
            f"{here} answers with another host key than the one that is known: either it was "
            "installed anew, or something else answers in its place. If you know why, run "
            f"`ssh-keygen{file} -R '{name}'`, then connect once by hand: {by_hand}"
        )
    if known.is_untrusted or isinstance(error, asyncssh.HostKeyNotVerifiable):
        return (
            f"{here} has a host key that is not known here ({error}); connect once by hand and "
            f"compare its fingerprint: {by_hand}"
        )
    if isinstance(error, asyncssh.PermissionDenied):
        return (
            f"{here} accepts none of our keys (passwords are never asked for); try "
            f"`ssh-copy-id{port}{key}{option} {user}{board.host}`, or name the key for this board"
        )
    if isinstance(error, asyncssh.KeyImportError):
        return (
            f"{here}: the private key cannot be used ({error}); one with a passphrase goes into "
            "ssh-agent: `ssh-add`"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{here}: {error.filename} cannot be read ({error.strerror}); name another file"
    if isinstance(error, TimeoutError):
        return f"{here} does not answer within {_CONNECT_S} s; is it on, and is the address right?"
    if isinstance(error, asyncssh.Error) and _may_pass(error):
        return (
            f"{here}: the connection was closed before it let us in ({error}): it may be booting "
            f"or shutting down, or be behind another that is; try {by_hand}"
        )
    if isinstance(error, asyncssh.Error):
        return f"{here}: no SSH connection ({error}); try {by_hand}"
    return f"{here} cannot be reached ({error}); check name, port and network, or try {by_hand}"
