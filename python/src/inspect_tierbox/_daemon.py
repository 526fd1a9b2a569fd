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

_lock = threading.Lock()
_socket: str | None = None
_http: RunVar[tuple[str, httpx.AsyncClient]] = RunVar("tierbox")


class Refused(Exception):
    """An answer that says no: its stable kind, and what people should read."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.kind: str = problem.get("kind", "internal")
        self.path: str = problem.get("context", {}).get("path", "")
        help = problem.get("help")
        super().__init__(problem.get("message", "no reason given") + (f" ({help})" if help else ""))


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


def _settings(path: str) -> dict[str, Any]:
    return {"base_url": "http://tierbox", "headers": {"tierbox-client": CLIENT}, "timeout": httpx.Timeout(None, connect=30)}


def _client(path: str) -> httpx.AsyncClient:
    """The connections of this event loop: they cannot be shared between two."""
    known = _http.get(None)
    if known is None or known[0] != path:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        known = (path, httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path, limits=limits), **_settings(path)))
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
    try:
        try:
            return _checked(await _client(socket()).request(method, path, **body))
        except httpx.ConnectError:
            # Nothing was sent. The daemon may have ended since; its environments have not.
            return _checked(await _client(socket(fresh=True)).request(method, path, **body))
    except httpx.TransportError as error:
        raise SandboxUnavailableError(f"the tierbox daemon does not answer: {error!r}") from error


def ask_now(method: str, path: str, **body: Any) -> Any:
    """The same without an event loop, for what Inspect asks synchronously."""
    for fresh in (False, True):
        name = socket(fresh)
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=name), **_settings(name)) as client:
                return _checked(client.request(method, path, **body)).json()
        except httpx.ConnectError as error:
            last = error
    raise SandboxUnavailableError(f"the tierbox daemon does not answer: {last!r}")


class Leases:
    """The environments of this process, renewed until they are given up."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self._thread: threading.Thread | None = None

    def add(self, environment: str, task: str, ttl: float) -> None:
        self.held[environment] = task
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, args=(ttl / 3,), name="tierbox-leases", daemon=True)
            self._thread.start()

    def _renew(self, every: float) -> None:
        while True:
            time.sleep(every)
            # The next round tries again; two may fail before a lease ends.
            with contextlib.suppress(Exception):
                if self.held:
                    ask_now("POST", "/v1/renew", json={"environments": list(self.held)})


def file_error(refused: Refused, path: str) -> Exception:
    """The exception that Python has for it, with the path as it was given."""
    kinds = {
        "not-found": (errno.ENOENT, "No such file or directory"),
        "permission-denied": (errno.EACCES, "Permission denied"),
        "policy-denied": (errno.EACCES, "Permission denied"),
        "is-a-directory": (errno.EISDIR, "Is a directory"),
        "not-a-file": (errno.EINVAL, "Not a regular file"),
        "no-space": (errno.ENOSPC, "No space left on device"),
    }
    if refused.kind in kinds and (refused.kind != "not-found" or refused.path):
        number, text = kinds[refused.kind]
        return OSError(number, text, path)
    if refused.kind == "timeout":
        return TimeoutError(str(refused))
    if refused.kind == "invalid-input":
        return ValueError(f"{path}: {refused}")
    return SandboxUnavailableError(str(refused))
