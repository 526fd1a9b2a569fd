"""A person at work: `--solver human_cli`, and the login that Inspect prints."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_tierbox import _daemon

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

@task
def dig():
    sample = Sample("What is in the file?", target="tide", files={{"secret.txt": "tide"}})
    return Task(dataset=[sample], scorer=includes(), sandbox=("tierbox", {profile!r}))
"""

LIMIT = 90.0


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: str) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execvp("/bin/sh", ["/bin/sh", "-c", f"exec {command}"])
        self.seen = ""

    def expect(self, *texts: str) -> str:
        """Reads until it shows one of some texts, forgets what it showed before, and tells which."""
        until = time.monotonic() + LIMIT
        while not (found := [text for text in texts if text in self.seen]):
            ready, _, _ = select.select([self.master], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{texts!r} was not shown within {LIMIT} s: {self.seen!r}"
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError as error:
                raise AssertionError(f"it ended before it showed {texts!r}: {self.seen!r}") from error
        self.seen = self.seen.split(found[0], 1)[1]
        return found[0]

    def say(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())


def logged_in(command: str) -> Terminal:
    """Inspect tells how to log in a moment before its own service is there: whoever is that quick logs in again."""
    until = time.monotonic() + LIMIT
    while (person := Terminal(command)).expect("What is in the file?", "No module named 'human_agent'").startswith("No"):
        assert time.monotonic() < until, "Inspect's service never came"
        os.close(person.master)
        os.waitpid(person.pid, 0)
    return person


def test_a_person_logs_in_and_submits(tmp_path: Path, profile: str) -> None:
    # The daemon that serves the eval too: who started it ends it.
    _daemon.ask_now("GET", "/v1")
    (tmp_path / "dig.py").write_text(TASK.format(profile=profile))
    inspect = Path(sys.executable).with_name("inspect")
    arguments = ["eval", "dig.py", "--solver", "human_cli", "--model", "mockllm/model", "--display", "plain", "--log-dir", "logs"]
    # What it prints for the person would wait in a buffer for whatever is printed next.
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    run = subprocess.Popen(
        [inspect, *arguments], cwd=tmp_path, env=unbuffered, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert run.stdout is not None
        told: list[str] = []
        for line in run.stdout:
            told.append(line)
            if " shell " in line:
                break
        assert told and " shell " in told[-1], "".join(told)
        person = logged_in(told[-1].strip())
        person.say("cat secret.txt; echo; echo seen-$((40 + 2))")
        person.expect("tide")
        person.expect("seen-42")
        person.say("task submit tide")
        person.expect("(y)")
        person.say("y")
        rest, _ = run.communicate(timeout=LIMIT)
        assert run.returncode == 0, "".join(told) + rest
    finally:
        run.kill()
    (log,) = [read_eval_log(info.name) for info in list_eval_logs(str(tmp_path / "logs"))]
    assert log.status == "success", log.error
    assert log.results and log.results.scores[0].metrics["accuracy"].value == 1.0
