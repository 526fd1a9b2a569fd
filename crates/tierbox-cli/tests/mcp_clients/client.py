"""Drives `tierbox mcp` with the official Python SDK, and with Strands Agents' client. Arguments: a case, then the server's command."""

import json
import sys
import time

import anyio
from mcp import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client


def server(command):
    return StdioServerParameters(command=command[0], args=command[1:])


def data(result):
    assert not result.is_error, result
    value = json.loads(result.content[0].text)
    assert value == result.structured_content, "text and structured content say the same"
    return value


def refusal(result):
    assert result.is_error, result
    return result.content[0].text


async def names(session):
    return sorted(tool.name for tool in (await session.list_tools()).tools)


async def everything(session):
    assert await names(session) == [
        "cleanup", "exec", "get_files", "list_directory", "read_file", "run_code", "status", "write_file",
    ]
    ran = data(await session.call_tool("run_code", {
        "code": "cat in.txt; printf %s \"$WORD\" > out.txt; exit 3", "runtime": "sh",
        "files": {"in.txt": "given\n", "raw": {"base64": "//4="}}, "env": {"WORD": "$(id)"},
    }))
    assert (ran["exit_code"], ran["stdout"], ran["success"]) == (3, "given\n", False), ran
    assert ran["error_message"] == "the program exited with status 3"
    assert [(file["name"], file["size"]) for file in ran["files_created"]] == [("out.txt", 5)]
    files = data(await session.call_tool("get_files", {"task_hash": ran["task_hash"]}))["files"]
    assert {file["name"]: file.get("text", file.get("base64")) for file in files} == {
        "in.txt": "given\n", "raw": "//4=", "out.txt": "$(id)",
    }
    # The names of the tool that this one follows are understood too.
    one = data(await session.call_tool("get_files", {"task_hash": ran["task_hash"], "filename": "out.txt"}))["files"]
    assert len(one) == 1
    old = {"code": "echo x > kept", "runtime": "sh", "session_id": "s", "env_vars": {}, "create_filesystem": True}
    assert data(await session.call_tool("run_code", old))["success"]
    kept = data(await session.call_tool("run_code", {"code": "cat kept", "runtime": "sh", "session": "s"}))
    assert kept["stdout"] == "x\n", kept
    data(await session.call_tool("write_file", {"path": "notes/a.txt", "contents": "hello"}))
    assert data(await session.call_tool("read_file", {"path": "notes/a.txt"}))["text"] == "hello"
    entries = data(await session.call_tool("list_directory", {"path": "notes"}))["entries"]
    assert entries == [{"name": "a.txt", "kind": "file", "size": 5}], entries
    ran = data(await session.call_tool("exec", {"argv": ["/bin/sh", "-c", "cat; exit 1"], "stdin": "asked"}))
    assert (ran["stdout"], ran["exit_code"]) == ("asked", 1)
    status = data(await session.call_tool("status", {}))
    assert status["tooling"] == "T0" and status["code"]["tasks"] == 3, status
    assert [session["name"] for session in status["sessions"]] == ["s"], status
    small = {"code": "ulimit -v; ulimit -t", "runtime": "sh", "cpu_seconds": 7, "memory_bytes": 1 << 30}
    assert data(await session.call_tool("run_code", small))["stdout"] == "1048576\n7\n"
    removed = data(await session.call_tool("cleanup", {"hours": 0}))
    assert len(removed["removed_tasks"]) == 4 and removed["removed_sessions"] == ["s"], removed


async def errors(session):
    for tool, arguments, part in [
        ("read_file", {"path": "/nothing"}, "not-found"),
        ("run_code", {"code": "", "runtime": "cobol"}, "What to do: use one of"),
        ("run_code", {"cod": ""}, "unknown field `cod`"),
        ("exec", {"argv": []}, "name a program"),
        ("exec", {"argv": ["/bin/true"], "timeout_seconds": -1}, "number of seconds"),
        ("write_file", {"path": "x", "contents": {"base64": "*"}}, "base64"),
        ("get_files", {"task_hash": "../../etc"}, "16 hex digits"),
        ("read_file", {"path": "/dev/zero"}, "not-a-file"),
    ]:
        text = refusal(await session.call_tool(tool, arguments))
        assert part in text, (tool, text)
    try:
        await session.call_tool("ec2_code_execution", {})
    except Exception as error:
        assert "run_code" in str(error), error
    else:
        raise AssertionError("a tool that does not exist answered")
    # None of that took the server down.
    assert data(await session.call_tool("exec", {"argv": ["/bin/echo", "still here"]}))["stdout"] == "still here\n"


async def progress(session):
    seen = []

    async def heard(done, total, message):
        seen.append((done, message))

    data(await session.call_tool("exec", {"argv": ["/bin/sleep", "2.5"]}, progress_callback=heard))
    assert len(seen) >= 3 and [done for done, _ in seen] == sorted(done for done, _ in seen), seen
    assert "exec has been running" in seen[-1][1]


async def cancellation(session):
    mark = "1234567.25"
    with anyio.move_on_after(1.0) as scope:
        await session.call_tool("exec", {"argv": ["/bin/sh", "-c", f"setsid sleep {mark} & sleep {mark}"]})
    assert scope.cancelled_caught
    until = time.monotonic() + 20
    while True:
        look = {"argv": ["/bin/sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; :"]}
        alive = data(await session.call_tool("exec", look))["stdout"]
        if f"sleep {mark}" not in alive:
            return
        assert time.monotonic() < until, alive
        await anyio.sleep(0.1)


async def several(session):
    results = {}

    async def one(index):
        ran = await session.call_tool("run_code", {"code": f"sleep 0.2; echo {index}", "runtime": "sh"})
        results[index] = data(ran)["stdout"]

    async with anyio.create_task_group() as group:
        for index in range(8):
            group.start_soon(one, index)
    assert results == {index: f"{index}\n" for index in range(8)}


async def named_programs(session):
    assert await names(session) == ["exec", "list_directory", "read_file", "status"]
    description = next(tool for tool in (await session.list_tools()).tools if tool.name == "exec").description
    assert "/usr/bin/wc" in description, description
    assert data(await session.call_tool("exec", {"argv": ["/usr/bin/wc", "-c"], "stdin": "12345"}))["stdout"] == "5\n"
    text = refusal(await session.call_tool("exec", {"argv": ["/bin/sh", "-c", "id"]}))
    assert "policy-denied" in text and "/usr/bin/wc" in text, text


async def nothing(session):
    assert await names(session) == []


async def terminated(session):
    # `rm` ends the run; everything else is allowed.
    assert data(await session.call_tool("exec", {"argv": ["/bin/echo", "x"]}))["success"]
    assert "terminated" in refusal(await session.call_tool("exec", {"argv": ["/bin/rm", "-rf", "x"]}))
    assert "terminated" in refusal(await session.call_tool("read_file", {"path": "/etc/hostname"}))


async def unattended(session):
    # Approvals ask, and nobody can be asked: commands are not even offered; what a rule allows is.
    assert await names(session) == ["get_files", "list_directory", "read_file", "run_code", "status"]
    assert data(await session.call_tool("run_code", {"code": "echo x", "runtime": "sh"}))["success"]
    assert "nobody can be asked" in refusal(await session.call_tool("run_code", {"code": "echo", "runtime": "bash"}))


async def with_session(case, command):
    async with stdio_client(server(command)) as (read, write):
        async with ClientSession(read, write) as session:
            answer = await session.initialize()
            assert answer.server_info.name == "tierbox" and "T" in answer.instructions, answer
            with anyio.fail_after(100):
                await case(session)


def strands(command):
    from strands.tools.mcp import MCPClient

    client = MCPClient(lambda: stdio_client(server(command)))
    with client:
        tools = {tool.tool_name: tool for tool in client.list_tools_sync()}
        assert "run_code" in tools and "get_files" in tools, list(tools)
        ran = client.call_tool_sync("1", "run_code", {"code": "echo $((6 * 7)) > answer; cat answer", "runtime": "sh"})
        assert ran["status"] == "success", ran
        report = json.loads(ran["content"][0]["text"])
        assert report["stdout"] == "42\n"
        files = client.call_tool_sync("2", "get_files", {"task_hash": report["task_hash"], "name": "answer"})
        assert json.loads(files["content"][0]["text"])["files"][0]["text"] == "42\n"
        refused = client.call_tool_sync("3", "run_code", {"code": "", "runtime": "cobol"})
        assert refused["status"] == "error" and "use one of" in refused["content"][0]["text"], refused


CASES = {
    case.__name__: case
    for case in [everything, errors, progress, cancellation, several, named_programs, nothing, terminated, unattended]
}

if __name__ == "__main__":
    name, command = sys.argv[1], sys.argv[2:]
    if name == "strands":
        strands(command)
    else:
        anyio.run(with_session, CASES[name], command)
    print("ok", name)
