"""Inspect's own checks of a provider, every one of them, none excused."""

import inspect

import pytest
from inspect_ai.util._sandbox import self_check
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

pytestmark = pytest.mark.anyio


def test_every_check_is_here() -> None:
    checks = [name for name, _ in inspect.getmembers(self_check, inspect.iscoroutinefunction) if name.startswith("test_")]
    assert len(checks) == 44
    assert all(name in globals() for name in checks)


async def test_the_checks_mean_something_here(sandbox_env) -> None:
    """Two of them pass for nothing without `ps`, and others as root."""
    assert (await sandbox_env.exec(["ps", "aux"])).success
    assert (await sandbox_env.exec(["id", "-u"])).stdout.strip() != "0"
