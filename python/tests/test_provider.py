"""What the provider promises beyond Inspect's own checks."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.util import (
    OutputLimitExceededError,
    SandboxEnvironmentSpec,
    SandboxUnavailableError,
)
from inspect_ai.util._sandbox.limits import override_max_exec_output_size
from inspect_tierbox import TierboxConfig, TierboxSandboxEnvironment as Provider
from inspect_tierbox import _daemon

pytestmark = pytest.mark.anyio


def listed() -> list[str]:
    return [env["id"] for env in _daemon.ask_now("GET", "/v1/environments")["environments"]]


async def started(config: TierboxConfig | str | None, task: str = "task") -> Provider:
    await Provider.task_init(task, config)
    made = await Provider.sample_init(task, config, {})
    return next(iter(made.values()))


async def test_a_config_is_hashable_and_survives_the_log() -> None:
    config = TierboxConfig("local", overrides={"limits": {"memory": "512MiB", "pids": 64}, "limits.exec": "5m"}, primary="a")
    assert config.overrides == (("limits.exec", "5m"), ("limits.memory", "512MiB"), ("limits.pids", "64"))
    again = Provider.config_deserialize(config.model_dump(mode="json"))
    assert again == config and hash(again) == hash(config)
    spec = SandboxEnvironmentSpec("tierbox", config)
    assert SandboxEnvironmentSpec.model_validate_json(spec.model_dump_json()).config == config
    with pytest.raises(Exception):
        config.profile = "other"


async def test_a_bare_name_finds_the_file_then_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert TierboxConfig.of(None).profile == "local"
    (tmp_path / "tierbox.toml").write_text('extends = "local"\ntier = "T0.H1.N2"\n')
    assert TierboxConfig.of(None).place == str(tmp_path / "tierbox.toml")
    assert TierboxConfig.of("sub/p.toml").place == str(tmp_path / "sub/p.toml")
    assert TierboxConfig.of("local-tools").place == "local-tools"
    assert Provider.config_files() == ["tierbox.toml"]


async def test_overrides_change_the_profile_and_the_report_says_so() -> None:
    sandbox = await started(TierboxConfig("local", overrides={"limits": {"pids": 77}}))
    report = json.loads(await _daemon.ask("GET", f"/v1/environments/{sandbox.environment}"))["report"]
    assert any(limit["name"] == "pids" and limit["value"] == "77" for limit in report["limits"])
    await Provider.task_cleanup("task", None, True)
    assert sandbox.environment not in listed()


async def test_overrides_let_no_other_layer_weaken_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "tierbox"
    home.mkdir()
    (home / "config.toml").write_text('[limits]\nmemory = "3GiB"\n')
    state = tmp_path / "state"
    run = [_daemon.program(), "--state-dir", str(state), "serve", "--background", "--json", "--idle", "2s"]
    env = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, env=env)
    monkeypatch.setattr(_daemon, "_socket", json.loads(done.stdout)["socket"])
    profile = tmp_path / "small.toml"
    profile.write_text('extends = "local"\ntier = "T0.H1.N2"\n[limits]\nmemory = "2GiB"\npids = 32\n')
    with pytest.raises(PrerequisiteError, match="user file would weaken `limits.memory`"):
        await started(TierboxConfig(str(profile), overrides={"limits": {"pids": 77}}))
    (home / "config.toml").unlink()
    await started(TierboxConfig(str(profile), overrides={"limits": {"pids": 77}}))
    await Provider.task_cleanup("task", None, True)


async def test_a_clean_up_goes_on_after_a_failure_and_tells_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = await started("local"), await started("local")
    destroy = Provider._destroy

    async def fails(environment: str) -> None:
        if environment != good.environment:
            raise SandboxUnavailableError(f"stuck: {environment}")
        await destroy(environment)

    Provider._leases["gone-1"] = "task"
    monkeypatch.setattr(Provider, "_destroy", fails)
    with pytest.raises(SandboxUnavailableError, match=f"{bad.environment}.*; gone-1: stuck"):
        await Provider.task_cleanup("task", None, True)
    assert good.environment not in listed() and bad.environment in listed()
    monkeypatch.undo()
    await Provider.task_cleanup("task", None, True)
    assert bad.environment not in listed() and not Provider._leases


async def test_what_grants_more_than_the_tier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_ENABLE_EXEC", "1")
    await Provider.task_init("task", "local")
    with pytest.raises(PrerequisiteError, match="INSPECT_ENABLE_EXEC grants more than T1.H1.N2"):
        await Provider.task_init("task", "local-tools")
    exports = subprocess.run([_daemon.program(), "env", "local-tools"], capture_output=True, text=True, check=True).stdout
    for line in exports.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        monkeypatch.setenv(name, shlex.split(value)[0])
    await Provider.task_init("task", "local-tools")
    monkeypatch.setenv("INSPECT_ENABLE_WEB_SEARCH", "true")
    with pytest.raises(PrerequisiteError, match="INSPECT_ENABLE_WEB_SEARCH"):
        await Provider.task_init("task", TierboxConfig("local", overrides={"tier": "T2.H1.N2"}))


async def test_an_unknown_profile_and_machine_are_refused_and_nothing_is_left() -> None:
    with pytest.raises(PrerequisiteError, match="no-such-profile"):
        await Provider.task_init("task", "no-such-profile")
    before = listed()
    with pytest.raises(PrerequisiteError, match="no machine is named nobody; there are default"):
        await started(TierboxConfig("local", primary="nobody"))
    assert listed() == before


async def test_an_interrupted_sample_is_left_to_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    sandbox = await started("local")
    await Provider.sample_cleanup("task", "local", {"default": sandbox}, True)
    assert sandbox.environment in listed()
    await Provider.task_cleanup("task", "local", False)
    printed = capsys.readouterr().out
    assert f"shell {sandbox.environment}" in printed and f"down {sandbox.environment}" in printed
    shown = json.loads(await _daemon.ask("GET", f"/v1/environments/{sandbox.environment}"))
    assert shown["state"] == "kept"
    done = subprocess.run([sys.executable, "-m", "inspect_ai", "sandbox", "cleanup", "tierbox"], capture_output=True, text=True)
    assert done.returncode == 0 and sandbox.environment in done.stdout, done.stdout + done.stderr
    assert sandbox.environment not in listed()


async def test_a_login_is_a_command_that_works() -> None:
    sandbox = await started("local")
    await sandbox.exec(["touch", "here"])
    connection = await sandbox.connection()
    assert connection.type == "tierbox"
    login = subprocess.run(
        ["script", "-qec", connection.command, "/dev/null"], input="ls; id -un; exit\n", capture_output=True, text=True, timeout=60
    )
    assert "here" in login.stdout and "agent" in login.stdout, login
    as_root = (await sandbox.connection(user="root")).command
    assert as_root.endswith("--user root")
    await Provider.task_cleanup("task", None, True)
    with pytest.raises(ConnectionError):
        await sandbox.connection()
    with pytest.raises(SandboxUnavailableError):
        await sandbox.exec(["true"])


async def test_cancelling_ends_the_command() -> None:
    sandbox = await started("local")
    with anyio.move_on_after(1):
        await sandbox.exec(["sh", "-c", "echo $$ > pid; setsid sleep 1000; :"])
    with anyio.fail_after(30):
        while (await sandbox.exec(["sh", "-c", "kill -0 $(cat pid) || pgrep sleep"])).success:
            await anyio.sleep(0.05)
    await Provider.task_cleanup("task", None, True)


async def test_outcomes_are_what_inspect_expects() -> None:
    sandbox = await started("local")
    assert (await sandbox.exec(["no-such-program"])).returncode == 127
    assert (await sandbox.exec(["sh", "-c", "kill -9 $$"])).returncode == 137
    assert "no such user: ghost" in (await sandbox.exec(["true"], user="ghost")).stderr
    assert not (await sandbox.exec(["true"], cwd="/nowhere")).success
    with pytest.raises(TimeoutError) as late:
        await sandbox.exec(["sh", "-c", "echo before; sleep 100"], timeout=1)
    assert late.value.truncated_output == "before\n"  # type: ignore[attr-defined]
    with override_max_exec_output_size(1024):
        with pytest.raises(OutputLimitExceededError, match="1 KiB"):
            await sandbox.exec(["head", "-c", "2048", "/dev/zero"])
    assert (await sandbox.exec(["readlink", "/proc/self/fd/0"])).stdout == "/dev/null\n"
    assert (await sandbox.exec(["wc", "-c"], input="")).stdout.strip() == "0"
    with pytest.raises(FileNotFoundError):
        await sandbox.read_file("/etc/passwd/x")
    with pytest.raises(UnicodeDecodeError):
        await sandbox.write_file("bytes", b"\xff")
        await sandbox.read_file("bytes")
    await Provider.task_cleanup("task", None, True)


async def test_much_and_many_at_once_come_whole() -> None:
    sandbox = await started("local")
    much = os.urandom(3 << 20)
    await sandbox.write_file("much", much)
    assert await sandbox.read_file("much", text=False) == much
    text = "word " * 200_000
    assert (await sandbox.exec(["cat"], input=text)).stdout == text
    with pytest.raises(IsADirectoryError):
        await sandbox.write_file("/tmp", much)

    async def says(number: int) -> None:
        assert (await sandbox.exec(["echo", str(number)])).stdout == f"{number}\n"

    for _ in range(2):
        async with anyio.create_task_group() as group:
            for number in range(80):
                group.start_soon(says, number)
    await Provider.task_cleanup("task", None, True)


async def test_a_name_with_spaces_and_signs_is_a_name() -> None:
    sandbox = await started("local")
    for name in ("a b+c&d=e#f?g%20h", "ä/ö", "line\nbreak"):
        await sandbox.write_file(name, name)
        assert await sandbox.read_file(name) == name
    await Provider.task_cleanup("task", None, True)


async def test_a_daemon_that_died_is_started_again_and_finds_the_sample() -> None:
    sandbox = await started("local")
    await sandbox.write_file("kept", "yes")
    os.kill(_daemon.ask_now("GET", "/v1")["pid"], 9)
    with anyio.fail_after(30):
        while True:
            try:
                assert await sandbox.read_file("kept") == "yes"
                break
            except SandboxUnavailableError:
                await anyio.sleep(0.1)
    await Provider.task_cleanup("task", None, True)


async def test_a_daemon_that_does_not_start_is_a_sandbox_that_is_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "tierbox"
    program.write_text("#!/bin/sh\necho nonsense\n")
    monkeypatch.setenv("TIERBOX_PROGRAM", str(program))
    monkeypatch.setattr(_daemon, "_socket", None)
    for mode in (0o600, 0o700):
        program.chmod(mode)
        with pytest.raises(SandboxUnavailableError, match="did not start"):
            await _daemon.ask("GET", "/v1")


async def test_decisions_are_told_and_there_are_none_without_a_gateway() -> None:
    named = await started(TierboxConfig("local-web", overrides={"network": {"allow": ["index.test"]}}))
    await named.exec(["getent", "ahostsv4", "other.test"])
    told = [one for one in await named.decisions() if one["name"] == "other.test"]
    assert told and {(one["verdict"], one["protocol"]) for one in told} == {("refused", "dns")}
    closed = await started("local")
    assert await closed.decisions() == []
    await Provider.task_cleanup("task", None, True)
    with pytest.raises(SandboxUnavailableError, match="decisions: "):
        await named.decisions()


async def test_concurrency_comes_from_the_daemon() -> None:
    assert (Provider.default_concurrency() or 0) >= 1


PAIR = """
services:
  default: {image: 'tierbox-test/debian:1', command: sleep infinity}
  web: {image: 'tierbox-test/debian:1', command: sleep infinity}
"""


@pytest.mark.skipif("TIERBOX_ENGINE_DOCKER" not in os.environ, reason="several machines need Docker's engine")
async def test_of_several_machines_the_primary_one_comes_first(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(PAIR)
    settings = f"[docker]\ncompose = 'compose.yaml'\npull = 'never'\nhost = '{os.environ['TIERBOX_ENGINE_DOCKER']}'\n"
    profile = tmp_path / "pair.toml"
    profile.write_text(f"extends = 'docker'\ntier = 'T0.H1.N2'\nverify = 'off'\n{settings}")
    for primary, order in [(None, ["default", "web"]), ("web", ["web", "default"])]:
        config = TierboxConfig(str(profile), primary=primary)
        await Provider.task_init("task", config)
        machines = await Provider.sample_init("task", config, {})
        assert list(machines) == order
        for name, machine in machines.items():
            await machine.write_file("/tmp/name", name)
        for name, machine in machines.items():
            assert await machine.read_file("/tmp/name") == name
        await Provider.sample_cleanup("task", config, machines, False)
        assert machines["web"].environment not in listed()
    await Provider.task_cleanup("task", None, True)
