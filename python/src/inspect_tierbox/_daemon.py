"""The daemon: started when it is needed, spoken to over its Unix socket."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from typing import Any

import httpx
from anyio.lowlevel import RunVar
from inspect_ai.util import SandboxUnavailableError

CLIENT = f"inspect-{os.getpid()}-{uuid.uuid4().hex[:8]}"
COMMAND = "application/vnd.tierbox.exec"
SETTINGS: dict[str, Any] = {"base_url": "http://tierbox", "headers": {"tierbox-client": CLIENT}, "timeout": None}
# What Python says of the daemon's kinds of errors.
ERRNOS = {"not-found": errno.ENOENT, "permission-denied": errno.EACCES, "policy-denied": errno.EACCES}
ERRNOS |= {"is-a-directory": errno.EISDIR, "not-a-file": errno.EINVAL, "no-space": errno.ENOSPC}

_lock = threading.Lock()
_socket: str | None = None
_http: RunVar[tuple[str, httpx.AsyncClient]] = RunVar("tierbox")


class Refused(Exception):
    """An answer that says no: its stable kind, and what people should read."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.kind: str = problem.get("kind", "internal")
        self.path: str = problem.get("context", {}).get("path", "")
        super().__init__(problem.get("message", "no reason given") + (f" ({problem['help']})" if problem.get("help") else ""))

    def error(self, what: str) -> Exception:
        """The exception that Python has for it; `what` is the path as it was given, or the program."""
        number = ERRNOS.get(self.kind)
        # Without a path it is the environment that was not found.
        if number is not None and (self.path or number != errno.ENOENT):
            return OSError(number, os.strerror(number), what)
        if self.kind == "timeout":
            return TimeoutError(str(self))
        return ValueError(f"{what}: {self}") if self.kind == "invalid-input" else SandboxUnavailableError(str(self))


def program() -> str:
    found = os.environ.get("TIERBOX_PROGRAM") or shutil.which("tierbox")
    if not found:
        raise SandboxUnavailableError("the `tierbox` program is not on the path; install it, or set TIERBOX_PROGRAM")
    return os.path.abspath(found)


def socket(fresh: bool = False) -> str:
    """The daemon's socket. Starts the daemon unless one listens."""
    global _socket
    with _lock:
        if _socket is None or fresh:
            run = [program(), "serve", "--background", "--json", "--idle", "10m"]
            done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
            if done.returncode != 0:
                raise SandboxUnavailableError(f"the tierbox daemon did not start: {done.stderr.strip()}")
            _socket = json.loads(done.stdout)["socket"]
        return _socket


def _client(path: str) -> httpx.AsyncClient:
    """The connections of this event loop: they cannot be shared between two."""
    known = _http.get(None)
    if known is None or known[0] != path:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        known = (path, httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path, limits=limits), **SETTINGS))
        _http.set(known)
    return known[1]


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        raise Refused(answer.json())
    except ValueError:
        raise SandboxUnavailableError(f"the tierbox daemon answered {answer.status_code}") from None


async def ask(method: str, path: str, **body: Any) -> httpx.Response:
    """One request. A cancelled one closes its connection, which ends the command that it waits for."""
    for fresh in (False, True):
        try:
            return _checked(await _client(socket(fresh)).request(method, path, **body))
        except httpx.ConnectError:
            continue  # Nothing was sent. The daemon may have ended since; its environments have not.
        except httpx.TransportError as error:
            raise SandboxUnavailableError(f"the tierbox daemon went away: {error!r}") from error
    raise SandboxUnavailableError("the tierbox daemon cannot be reached")


def ask_now(method: str, path: str, **body: Any) -> Any:
    """The same without an event loop, for what Inspect asks synchronously."""
    for fresh in (False, True):
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket(fresh)), **SETTINGS) as client:
            with contextlib.suppress(httpx.ConnectError):
                return _checked(client.request(method, path, **body)).json()
    raise SandboxUnavailableError("the tierbox daemon cannot be reached")


class Leases(dict[str, str]):
    """The environments of this process and their tasks, renewed until they are given up."""

    _renewing = False

    def add(self, environment: str, task: str, ttl: float) -> None:
        self[environment] = task
        if not self._renewing:
            self._renewing = True
            threading.Thread(target=self._renew, args=(ttl / 3,), name="tierbox-leases", daemon=True).start()

    def _renew(self, every: float) -> None:
        while True:
            time.sleep(every)
            # The next round tries again; two may fail before a lease ends.
            with contextlib.suppress(Exception):
                if self:
                    ask_now("POST", "/v1/renew", json={"environments": list(self)})
