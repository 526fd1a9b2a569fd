"""The provider: what Inspect asks of a sandbox, asked of the tierbox daemon."""

import json
import os
import shlex
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.log import transcript
from inspect_ai.util import ExecResult, OutputLimitExceededError, SandboxConnection, SandboxEnvironment
from inspect_ai.util import SandboxEnvironmentConfigType as Config, SandboxEnvironmentLimits as Limits
from inspect_ai.util import SandboxUnavailableError, SandboxUserUnsupportedError, sandboxenv
from pydantic import BaseModel

from ._config import TierboxConfig
from ._daemon import BYTES, COMMAND, Leases, Refused, ask, ask_now, program

# What Inspect's switches grant, and from which level of T on they grant too much.
SWITCHES = {"INSPECT_ENABLE_EXEC": 1, "INSPECT_ENABLE_WEB_SEARCH": 2, "INSPECT_ENABLE_WEB_BROWSER": 2}
TOOLING = "declared; enforced by Inspect's tools and approvals"
NEVER_RAN = {"bad-cwd": "the working directory does not exist or cannot be entered", "too-big": "Argument list too long"}
NEVER_RAN |= {"unknown-user": "no such user: {user}"}


@sandboxenv(name="tierbox")
class TierboxSandboxEnvironment(SandboxEnvironment):
    """One machine of an environment, as the harness uses it."""

    _leases = Leases()
    _places: dict[TierboxConfig, set[str]] = {}

    def __init__(self, environment: str, machine: str) -> None:
        super().__init__()
        self.environment, self.machine = environment, machine
        self._url = f"/v1/environments/{environment}"

    @classmethod
    def config_files(cls) -> list[str]:
        return ["tierbox.toml"]

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> BaseModel:
        return TierboxConfig(**config)

    @classmethod
    def default_concurrency(cls) -> int | None:
        return ask_now("GET", "/v1", {"profile": TierboxConfig.of(None).place})["concurrency"]

    def default_polling_interval(self) -> float:
        return 0.2

    @classmethod
    async def task_init(cls, task_name: str, config: Config | None) -> None:
        wanted = TierboxConfig.of(config)
        cls._places.setdefault(wanted, set()).add(wanted.place)  # Inspect is in the task's directory now and only now.
        tier = (json.loads(await ask("GET", "/v1", {"profile": wanted.place})) | dict(wanted.overrides))["tier"]
        on = [name for name in SWITCHES if os.environ.get(name, "").lower() not in {"", "0", "false", "no", "off"}]
        if granted := [name for name in on if int(tier[1]) >= SWITCHES[name]]:
            advice = f'Run: eval "$(tierbox env {shlex.quote(wanted.profile)})"'
            raise PrerequisiteError(f"{' and '.join(granted)} grants more than {tier} allows the agent. {advice}")

    @classmethod
    async def sample_init(cls, task_name: str, config: Config | None, metadata: dict[str, str]) -> dict[str, SandboxEnvironment]:
        wanted = TierboxConfig.of(config)
        places = cls._places.get(wanted) or {wanted.place}
        if len(places) > 1:
            raise PrerequisiteError(f"tasks in several directories name {wanted.profile}: give them absolute paths")
        request = {
            "profile": next(iter(places)), "set": dict(wanted.overrides),
            # Code that overrides a value means it; the report lists what it weakens. No other layer may weaken anything.
            "weaker_set": True,
            "wait": 86400,  # The daemon queues a start fairly; Inspect has no limit for it either.
            "labels": {"task": task_name[:200], "sample": str(metadata.get("__sample_id__", ""))[:200]},
        }
        started = json.loads(await ask("POST", "/v1/environments", body=request))
        try:
            machines = started["machines"]
            if wanted.primary not in (None, *machines):
                raise PrerequisiteError(f"no machine is named {wanted.primary}; there are {', '.join(machines)}")
            machines.sort(key=lambda name: name != wanted.primary)
            cls._leases.add(started["id"], task_name, started["ttl"])
            told = {key: started[key] for key in ("tier", "profile", "backend", "report", "attestation")}
            told |= {"environment": started["id"], "principal": "harness", "tooling": TOOLING}
            transcript().info(told, source="tierbox")  # The sample's log says what it runs in.
            return {name: cls(started["id"], name) for name in machines}
        except BaseException:
            with anyio.CancelScope(shield=True):
                await cls._destroy(started["id"])
            raise

    @classmethod
    async def _destroy(cls, environment: str) -> None:
        try:
            await ask("DELETE", f"/v1/environments/{environment}")
        except Refused as refused:
            if refused.kind != "not-found":
                raise
        cls._leases.pop(environment, None)

    @classmethod
    async def _each(cls, environments: Iterable[str], work: Callable[[str], Awaitable[None]], done: str = "") -> None:
        """Does something to each of them, whatever becomes of the others, and tells what failed."""
        failed = []
        for environment in environments:
            try:
                await work(environment)
                print(done.format(environment), end="\n" if done else "")
            except (Refused, OSError, SandboxUnavailableError) as error:
                failed.append(f"{environment}: {error}")
        if failed:
            raise SandboxUnavailableError(f"tierbox could not clean up. {'; '.join(failed)}")

    @classmethod
    async def sample_cleanup(cls, task_name: str, config: Config | None, environments: dict[str, Any], interrupted: bool) -> None:
        if not interrupted:
            await cls._each({env.as_type(cls).environment for env in environments.values()}, cls._destroy)

    @classmethod
    async def task_cleanup(cls, task_name: str, config: Config | None, cleanup: bool) -> None:
        async def keep(id: str) -> None:
            await ask("POST", f"/v1/environments/{id}/renew", body={"keep": True})
            task, own = cls._leases.pop(id), shlex.quote(program())
            print(f"{id} ({task}) is kept.\n  login:   {own} shell {id}\n  cleanup: {own} down {id}")
        cls._places.clear()
        await cls._each(list(cls._leases), cls._destroy if cleanup else keep)

    @classmethod
    async def cli_cleanup(cls, id: str | None) -> None:
        listed = json.loads(await ask("GET", "/v1/environments"))["environments"]
        ours = [env["id"] for env in listed if env["client"].startswith("inspect-")]
        if id is not None and id not in ours:
            print(f"{id} is not an environment of Inspect's; there are: {', '.join(ours) or 'none'}")
        await cls._each(ours if id is None else [id] if id in ours else [], cls._destroy, "removed {}")

    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        try:
            found = json.loads(await ask("GET", f"{self._url}/connection", {"machine": self.machine}))
        except (Refused, SandboxUnavailableError) as error:
            raise ConnectionError(str(error)) from error
        if (argv := found["argv"])[0] == "tierbox":
            argv = [program(), "--state-dir", found["state"], *argv[1:], *(["--user", user] if user else [])]
        return SandboxConnection(type="tierbox", command=shlex.join(argv))

    async def exec(
        self, cmd: list[str], input: str | bytes | None = None, cwd: str | None = None, env: dict[str, str] | None = None,
        user: str | None = None, timeout: int | None = None, timeout_retry: bool = True, concurrency: bool = True,
    ) -> ExecResult[str]:
        head = {"argv": cmd, "machine": self.machine, "cwd": cwd, "env": env or {}, "user": user, "stdin": input is not None}
        head |= {"output_limit": Limits.MAX_EXEC_OUTPUT_SIZE, "timeout": timeout}  # Kept inside: no lost command is tried again.
        body = json.dumps(head).encode() + b"\n" + (input.encode() if isinstance(input, str) else input or b"")
        try:
            answer = await ask("POST", f"{self._url}/exec", body=body, media=COMMAND)
        except Refused as refused:
            if refused.kind == "unsupported" and user is not None:
                raise SandboxUserUnsupportedError(f"{self.environment} cannot run commands as {user!r}: {refused}") from refused
            raise refused.error(cmd[0] if cmd else "exec") from refused
        return self._result(answer, cmd, user)

    def _result(self, answer: bytes, cmd: list[str], user: str | None) -> ExecResult[str]:
        line, _, rest = answer.partition(b"\n")
        end = json.loads(line)
        cut = end["stdout"]["head"] + end["stdout"]["tail"]
        stdout, stderr = rest[:cut].decode(errors="replace"), rest[cut:].decode(errors="replace")
        if end["outcome"] in ("lost", {"killed": "lifetime"}):
            why = "went away; the command may have run" if end["outcome"] == "lost" else "has ended: its lifetime is over"
            raise SandboxUnavailableError(f"{self.environment} {why}")
        if "not-started" in end["outcome"]:
            cause = end["outcome"]["not-started"]["cause"]
            if cause == "user-not-mapped":
                raise SandboxUserUnsupportedError(f"{self.environment} cannot run commands as {user!r}")
            if cause not in NEVER_RAN:
                raise SandboxUnavailableError(f"{self.environment} could not start the command: {cause}")
            return ExecResult(False, 125, "", f"{cmd[0]} never ran: {NEVER_RAN[cause].format(user=user)}\n")
        status = end["status"]
        if (killed := end["outcome"].get("killed")) == "timeout":
            error = TimeoutError("the command's time was up")
            error.truncated_output = stdout + stderr  # type: ignore[attr-defined]
            raise error
        if end["cannot_execute"] is not None and status == 126:
            raise PermissionError(end["cannot_execute"], os.strerror(end["cannot_execute"]), cmd[0])
        if any(stream["total"] > stream["head"] + stream["tail"] for stream in (end["stdout"], end["stderr"])):
            raise OutputLimitExceededError(Limits.MAX_EXEC_OUTPUT_SIZE_STR, stdout + stderr)
        return ExecResult(status == 0, status, stdout, stderr + (f"killed by tierbox: {killed}\n" if killed else ""))

    async def _file(self, method: str, file: str, contents: bytes = b"", **limits: int) -> bytes:
        try:
            return await ask(method, f"{self._url}/files", {"path": file, "machine": self.machine, **limits}, contents, BYTES)
        except Refused as refused:
            if refused.kind == "too-large" and limits:
                raise OutputLimitExceededError(Limits.MAX_READ_FILE_SIZE_STR, None) from refused
            raise refused.error(file) from refused

    async def decisions(self) -> list[dict[str, Any]]:
        """What the gateway of N1 decided in this environment so far, oldest first, as the daemon tells it. For scorers."""
        try:
            lines = (await ask("GET", f"{self._url}/decisions")).splitlines()
        except Refused as refused:
            raise refused.error("decisions") from refused
        return [json.loads(line) for line in lines]

    async def write_file(self, file: str, contents: str | bytes) -> None:
        await self._file("PUT", file, contents.encode() if isinstance(contents, str) else contents)

    async def read_file(self, file: str, text: bool = True) -> Any:
        contents = await self._file("GET", file, max=Limits.MAX_READ_FILE_SIZE)
        return contents.decode() if text else contents
