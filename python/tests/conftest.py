"""What the tests have in common: a daemon of their own, and samples in it."""

import os
import subprocess
from collections.abc import AsyncIterator

import pytest
from inspect_tierbox import TierboxConfig, TierboxSandboxEnvironment as Provider
from inspect_tierbox import _daemon

ROOT = """extends = "local"
tier = "T0.H1.N2"
description = "A container with a small Debian of its own"

[local]
root = "{root}"
"""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def daemon(tmp_path_factory: pytest.TempPathFactory):
    """Ends the daemon that the tests made the provider start."""
    if "TIERBOX_STATE_DIR" not in os.environ:
        os.environ["TIERBOX_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))
    yield
    if _daemon._socket is not None:
        about = _daemon.ask_now("GET", "/v1")
        for environment in _daemon.ask_now("GET", "/v1/environments")["environments"]:
            _daemon.ask_now("DELETE", f"/v1/environments/{environment['id']}")
        subprocess.run(["kill", str(about["pid"])], check=True)


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The profile under test: the one that is named, else a container with the directory that was made for it."""
    stated = os.environ.get("TIERBOX_TEST_PROFILE")
    if stated is None:
        path = tmp_path_factory.mktemp("profiles") / "debian.toml"
        path.write_text(ROOT.format(root=os.environ["TIERBOX_TEST_ROOT"]))
        stated = str(path)
    return stated


@pytest.fixture(scope="module")
async def shared_env(anyio_backend: str, profile: str) -> AsyncIterator[Provider]:
    config = TierboxConfig(profile)
    await Provider.task_init("self_check", config)
    made = await Provider.sample_init("self_check", config, {})
    yield next(iter(made.values()))
    await Provider.sample_cleanup("self_check", config, made, False)
    await Provider.task_cleanup("self_check", config, True)


@pytest.fixture
async def sandbox_env(shared_env: Provider) -> Provider:
    return shared_env
