"""The content of a lock: who holds it, and for which parameters."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass

from pipeline.errors import TryAgainError, UserError
from pipeline.storage import Location, json_bytes, read_many


class NoLockError(UserError):
    """The file system or the store does not let this run take the lock."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that took a lock, as the lock's file names it.

    Attributes:
        host: the name of its host.
        processes: the process namespace of its host, which differs between containers.
        pid: its process.
        since: the local time at which it took the lock.
        token: a random name. No other lock has the same one.
        parameters: the digest of the dataset's parameters if other runs with the same parameters
            may share the lock; None if the run holds the lock alone.
    """

    host: str
    processes: str
    pid: int
    since: str
    token: str
    parameters: str | None

    @classmethod
    def this_process(cls, parameters: str | None) -> Holder:
        """This process as a new holder."""
        return cls(
            host=socket.gethostname(),
            processes=_namespace(),
            pid=os.getpid(),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            token=uuid.uuid4().hex,
            parameters=parameters,
        )

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, since {self.since}"

    def to_bytes(self) -> bytes:
        return json_bytes(asdict(self))

    def is_gone(self) -> bool:
        """Whether the process ran on this host and has ended."""
        if (self.host, self.processes) != (socket.gethostname(), _namespace()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # The process runs, as another user.
            return False
        return False


def parse_holder(text: bytes | None) -> Holder | None:
    """Parse the content of a lock; None if there is none or another program wrote it."""
    try:
        holder = Holder(**json.loads(text or b""))
    except (ValueError, TypeError):
        return None
    return holder if isinstance(holder.pid, int) and isinstance(holder.token, str) else None


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that this run holds. Jobs carry it to their workers.

    Attributes:
        path: the file or object of the lock; None where the store knows no locks.
        key: the parameter that names the locked directory, for messages.
        holder: the run whose name stands in the file.
    """

    path: Location | None
    key: str
    holder: Holder

    def check(self) -> None:
        """Make sure that the run still holds the lock.

        Raises:
            TryAgainError: the file of the lock was deleted, or another run took the lock.
        """
        if self.path is None:
            return
        (text,) = read_many([self.path])
        now = parse_holder(text)
        if now is not None and now.token == self.holder.token:
            return
        if text is None:
            loss = "its file was deleted"
        else:
            loss = f"now it is held by another run ({now or 'whose name cannot be read'})"
        raise TryAgainError(
            f"{self.key} {self.path.parent}: the run {self.holder} lost its lock {self.path.name}, "
            f"{loss}. Another run may write there: stop it, then run this command again"
        )


def in_use(key: str, directory: Location, holder: Holder | None) -> TryAgainError:
    """The error of a run that finds a directory locked by ``holder``."""
    return TryAgainError(
        f"{key} {directory} is in use by another run ({holder or 'which has just started'}): "
        "wait until that run ends, stop it, or name another directory"
    )


def other_parameters(key: str, directory: Location, holder: Holder) -> TryAgainError:
    """The error of a run that finds a directory shared by runs with other parameters."""
    return TryAgainError(
        f"{key} {directory} is in use by a run with other parameters ({holder}): give both runs "
        "the same parameters, wait until that run ends, or name another directory"
    )


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
