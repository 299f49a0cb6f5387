"""Notices at once that another process of the run has died, wherever this one happens to wait.

Every process keeps a connection to process 0. The operating system closes the connections of a process that dies,
however it died, and process 0 passes the news on. A machine that vanishes without closing anything is noticed by
JAX's heartbeats only, see `processes.ProcessConfig.lost_seconds`.
"""

import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from mllm_jax.parallel.processes import is_first_process, process_group

LOST_EXIT_CODE = 76
"""Exit code of a process that ends because another one is gone: start all of them again with the same command."""

LOGGER = logging.getLogger(__name__)

_NUMBER = struct.Struct("!i")
_LEFT = -1
"""Sent by a process that has finished; any other number is that of a process that is gone."""
_TOKEN_BYTES = 16
_INVITATION_BYTES = 512
_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_HEAR_SECONDS = 1.0
"""What a process that fails waits for the news that another one failed first."""


class _Invitation(NamedTuple):
    """Where process 0 listens."""

    host: str
    port: int
    token: str
    """Proves that who connects belongs to the run."""


@contextlib.contextmanager
def watching_others(environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Ends this process with a message and `LOST_EXIT_CODE` as soon as another one is gone; a collective.

    Leaving the block tells the others that this process has finished; an error that passes through does not.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _open_watch(os.environ if environment is None else environment)
    yield
    watch.close()


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends this process when the block fails and there are others, without unwinding further.

    What would be unwound waits for the others (a checkpoint for its barrier, JAX for a common shutdown), while they
    wait for this process. A process that is alone just raises.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        # The loss of another process makes this one fail too; the watch knows which one it was, and says so.
        time.sleep(_HEAR_SECONDS)
        _leave(error)


def _leave(error: BaseException) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        _end("was interrupted.", 130)
    if isinstance(error, ValueError | OSError) and not isinstance(error, jax.errors.JaxRuntimeError):
        _end(f"failed: {error}", 1)
    traceback.print_exception(error)
    _end("failed, see above.", 1)


def _end(what: str, code: int) -> NoReturn:
    place = f"process {jax.process_index()} of {jax.process_count()}"
    sys.stdout.flush()
    print(f"mllm: {place} {what}", file=sys.stderr, flush=True)
    os._exit(code)


def _open_watch(environment: Mapping[str, str]) -> "_Watch":
    group = process_group(environment)
    host = socket.gethostname() if group is None else group.coordinator.rpartition(":")[0].strip("[]")
    listener = _listen() if is_first_process() else None
    port = 0 if listener is None else listener.getsockname()[1]
    invitation = _invite(_Invitation(host, port, secrets.token_hex(_TOKEN_BYTES // 2)))
    return _Watch(listener, invitation.token.encode(), None if listener else _connect(invitation))


def _listen() -> socket.socket:
    backlog = jax.process_count()
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)


def _invite(invitation: _Invitation) -> _Invitation:
    """Process 0's invitation, on every process."""
    text = json.dumps(invitation).encode().ljust(_INVITATION_BYTES)
    sent = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    return _Invitation(*json.loads(np.asarray(sent).astype(np.uint8).tobytes()))


def _connect(invitation: _Invitation) -> socket.socket | None:
    try:
        connection = socket.create_connection((invitation.host, invitation.port), _CONNECT_SECONDS)
    except OSError as error:
        LOGGER.warning(
            "Process %d cannot reach process 0 at %s:%d (%s), so it notices the loss of another process only when "
            "JAX's heartbeats do. Allow connections between the machines on all ports to notice it at once.",
            *(jax.process_index(), invitation.host, invitation.port, error),
        )
        return None
    connection.settimeout(None)
    connection.sendall(invitation.token.encode() + _NUMBER.pack(jax.process_index()))
    return connection


class _Watch:
    """The thread that listens to the other processes: process 0 to all, the others to process 0."""

    def __init__(self, listener: socket.socket | None, token: bytes, first: socket.socket | None):
        """
        Args:
            listener: of process 0.
            token: what those who connect send first.
            first: the connection to process 0, of another process that could connect.
        """
        self._token = token
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        if listener is not None:
            self._selector.register(listener, selectors.EVENT_READ)
        if first is not None:
            self._selector.register(first, selectors.EVENT_READ, data=0)
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Says that this process has finished, and ends the thread."""
        self._closing.set()
        self._thread.join()
        self._tell(_LEFT)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _listen(self) -> None:
        while not self._closing.is_set():
            for key, _ in self._selector.select(_LOOK_SECONDS):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.fileobj, key.data)  # type: ignore[arg-type]

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        connection.settimeout(_CONNECT_SECONDS)
        hello = _receive(connection, len(self._token) + _NUMBER.size)
        if not hello.startswith(self._token):
            connection.close()
            return
        connection.settimeout(None)
        self._selector.register(connection, selectors.EVENT_READ, data=_NUMBER.unpack(hello[len(self._token) :])[0])

    def _hear(self, connection: socket.socket, process: int) -> None:
        message = _receive(connection, _NUMBER.size)
        number = _NUMBER.unpack(message)[0] if message else process
        if number == _LEFT:
            self._selector.unregister(connection)
            connection.close()
            return
        self._tell(number)
        _end(
            f"ends because process {number} is gone, whose own last lines may say why; start all processes again with "
            "the same command: the run goes on from its newest whole checkpoint.",
            LOST_EXIT_CODE,
        )

    def _tell(self, number: int) -> None:
        """To all that are connected; those that cannot be told have heard, or are gone themselves."""
        for key in list(self._selector.get_map().values()):
            if key.fileobj is not self._listener:
                with contextlib.suppress(OSError):
                    key.fileobj.sendall(_NUMBER.pack(number))  # type: ignore[union-attr]


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or none from a connection that is closed."""
    try:
        data = connection.recv(size, socket.MSG_WAITALL)
    except OSError:
        return b""
    return data if len(data) == size else b""
