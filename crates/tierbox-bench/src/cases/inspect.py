"""A sandbox provider of Inspect's, one step for each line on standard input: it answers with the seconds that it took.
The argument is the provider: docker or local (Inspect's own), or tierbox.

    create | exec | write | read | destroy
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from inspect_ai.util._sandbox.registry import registry_find_sandboxenv

# As the provider writes one itself for an image.
COMPOSE = """
services:
  default:
    image: tierbox-test/debian:1
    x-local: true
    command: tail -f /dev/null
    init: true
    network_mode: none
    stop_grace_period: 1s
"""


def configuration(provider: str):
    if provider == "docker":
        config = Path(tempfile.mkdtemp()) / "compose.yaml"
        config.write_text(COMPOSE)
        return str(config)
    if provider == "tierbox":
        from inspect_tierbox import TierboxConfig

        return TierboxConfig("local")
    return None


async def main(provider: str) -> None:
    Provider, config = registry_find_sandboxenv(provider), configuration(provider)
    await Provider.task_init("bench", config)
    environments = {}

    async def create():
        environments.update(await Provider.sample_init("bench", config, {}))

    async def destroy():
        await Provider.sample_cleanup("bench", config, dict(environments), False)
        environments.clear()

    async def run():
        result = await environments["default"].exec(["/bin/true"])
        assert result.returncode == 0, result

    async def write():
        await environments["default"].write_file("file", "x" * 1024)

    async def read():
        assert len(await environments["default"].read_file("file")) == 1024

    steps = {"create": create, "exec": run, "write": write, "read": read, "destroy": destroy}
    print("ready", file=out, flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        begun = time.monotonic()
        await steps[line]()
        print(time.monotonic() - begun, file=out, flush=True)
    await Provider.task_cleanup("bench", config, True)


if __name__ == "__main__":
    # What the provider shows to people goes elsewhere.
    out, sys.stdout = sys.stdout, sys.stderr
    asyncio.run(main(sys.argv[1]))
