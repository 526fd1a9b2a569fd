"""The daemon: started when it is needed, spoken to over its Unix socket."""

import contextlib
import errno
import json
import os
import select
import shutil
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlencode

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import RunVar
from anyio.streams.buffered import BufferedByteReceiveStream as Line
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.util import SandboxUnavailableError

CLIENT = f"inspect-{os.getpid()}-{uuid.uuid4().hex[:8]}"
JSON, COMMAND, BYTES = "application/json", "application/vnd.tierbox.exec", "application/octet-stream"
# What Python says of the daemon's kinds of errors.
ERRNOS = {"not-found": errno.ENOENT, "permission-denied": errno.EACCES, "policy-denied": errno.EACCES}
ERRNOS |= {"is-a-directory": errno.EISDIR, "not-a-file": errno.EINVAL, "no-space": errno.ENOSPC}

_lock = threading.Lock()
_socket: str | None = None
_lines: RunVar[dict[str, list[Line]]] = RunVar("tierbox")


class Refused(PrerequisiteError):
    """An answer that says no: its stable kind, and what people should read."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.kind, self.path = problem.get("kind", "internal"), problem.get("context", {}).get("path", "")
        help = f" ({problem['help']})" if problem.get("help") else ""
        super().__init__(f"tierbox: {problem.get('message', 'no reason given')}{help}")
        self.args = (self.message,)

    def error(self, what: str) -> Exception:
        """The exception that Python has for it; `what` is the path as it was given, or the program."""
        # Without a path it is the environment that was not found.
        if (number := ERRNOS.get(self.kind)) and (self.path or number != errno.ENOENT):
            return OSError(number, os.strerror(number), what)
        return {"timeout": TimeoutError, "invalid-input": ValueError}.get(self.kind, SandboxUnavailableError)(f"{what}: {self}")


def program() -> str:
    if found := os.environ.get("TIERBOX_PROGRAM") or shutil.which("tierbox"):
        return os.path.abspath(found)
    raise SandboxUnavailableError("the `tierbox` program is not on the path; install it, or set TIERBOX_PROGRAM")


def socket(fresh: bool = False) -> str:
    """The daemon's socket. Starts the daemon unless one listens."""
    global _socket
    with _lock:
        if _socket is None or fresh:
            run = [program(), "serve", "--background", "--json", "--idle", "10m"]
            try:
                done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
                _socket = json.loads(done.stdout)["socket"]
            except (OSError, ValueError, subprocess.SubprocessError) as why:
                raise SandboxUnavailableError(f"the tierbox daemon did not start: {getattr(why, 'stderr', '') or why}") from why
        return _socket


async def _line() -> tuple[Line, list[Line]]:
    """A connection, and those that wait. They are an event loop's own."""
    for fresh in (False, True):
        _lines.set(lines := _lines.get({}))
        idle = lines.setdefault(path := (not fresh and _socket) or await anyio.to_thread.run_sync(socket, fresh), [])
        while idle:
            (poll := select.poll()).register((line := idle.pop()).extra(SocketAttribute.raw_socket), select.POLLIN)
            if not poll.poll(0):
                return line, idle
            await line.aclose()  # The daemon ended it, or said what nobody asked for.
        with contextlib.suppress(OSError):  # The daemon may have ended; its environments have not.
            return Line(await anyio.connect_unix(path)), idle
    raise SandboxUnavailableError("the tierbox daemon cannot be reached")


async def _exchange(line: Line, request: bytes) -> tuple[int, bytes, bool]:
    """Status and contents of the answer, and whether the connection stays. By hand: libraries take as long as a small command."""
    with contextlib.suppress(anyio.BrokenResourceError):  # It may have answered before it heard all.
        await line.receive_stream.send(request)
    head = (await line.receive_until(b"\r\n\r\n", 65536)).decode("latin-1").lower()
    fields = dict(field.split(": ", 1) for field in head.split("\r\n")[1:])
    if "transfer-encoding" not in fields:
        contents = await line.receive_exactly(int(fields.get("content-length", 0)))
    else:
        contents = bytearray()
        while size := int(await line.receive_until(b"\r\n", 4096), 16):
            contents += (await line.receive_exactly(size + 2))[:-2]
        await line.receive_exactly(2)
    return int(head.split(" ", 2)[1]), bytes(contents), fields.get("connection") != "close"


async def ask(method: str, path: str, query: dict[str, Any] = {}, body: Any = b"", media: str = JSON, keep: int = 64) -> bytes:
    """The answer to a request. A cancelled one closes its connection, which ends its command. At most `keep` connections wait."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    path += f"?{urlencode(query, quote_via=quote)}" if query else ""
    head = f"{method} {path} HTTP/1.1\r\nhost: tierbox\r\ntierbox-client: {CLIENT}\r\ncontent-type: {media}\r\n"
    (line, idle), stays = await _line(), False
    try:
        status, contents, stays = await _exchange(line, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    except (anyio.BrokenResourceError, anyio.IncompleteRead) as error:
        raise SandboxUnavailableError(f"the tierbox daemon went away: {error!r}") from error
    finally:
        if stays and len(idle) < keep:
            idle.append(line)
        else:
            await anyio.aclose_forcefully(line)
    if not 200 <= status < 300:
        raise Refused({"message": f"the daemon answered {status}"} | json.loads(contents or b"{}"))
    return contents


def ask_now(method: str, path: str, query: dict[str, Any] = {}, body: Any = b"") -> Any:
    """The same for what Inspect asks synchronously, also while an event loop runs."""
    with ThreadPoolExecutor(1) as thread:
        return json.loads(thread.submit(anyio.run, ask, method, path, query, body, JSON, 0).result())


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
            with contextlib.suppress(Exception):  # The next round tries again; two may fail before a lease ends.
                if self:
                    ask_now("POST", "/v1/renew", body={"environments": list(self)})
