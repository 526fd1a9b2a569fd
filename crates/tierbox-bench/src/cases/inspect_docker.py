"""Inspect's own Docker provider, one step for each line on standard input: it answers with the seconds that it took.

    create | exec | write | read | destroy
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from inspect_ai.util._sandbox.docker.docker import DockerSandboxEnvironment as Provider

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


async def main() -> None:
    config = str(Path(tempfile.mkdtemp()) / "compose.yaml")
    Path(config).write_text(COMPOSE)
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
        await environments["default"].write_file("/tmp/file", "x" * 1024)

    async def read():
        assert len(await environments["default"].read_file("/tmp/file")) == 1024

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
    asyncio.run(main())
