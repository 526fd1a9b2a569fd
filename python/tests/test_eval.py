"""A small eval with a mock model, from the task to the log."""

from pathlib import Path

import pytest
from inspect_ai import Task, eval as run_eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.scorer import Score, Scorer, Target, accuracy, includes, scorer
from inspect_ai.solver import TaskState, basic_agent, generate
from inspect_ai.tool import bash
from inspect_ai.log import EvalLog
from inspect_ai.util import sandbox
from inspect_tierbox import TierboxConfig, TierboxSandboxEnvironment, _daemon

TASKS = """
import pytest
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.solver import generate

@task
def beside():
    return Task(dataset=[Sample("say hello", target="Default")], solver=generate(), sandbox=("tierbox", "beside.toml"))
"""


def model(times: int = 1):
    """Looks into a file with a tool, and says what is in it."""
    call = ModelOutput.for_tool_call("mockllm/model", "bash", {"command": "cat secret.txt; id -un"})
    said = ModelOutput.for_tool_call("mockllm/model", "submit", {"answer": "tide"})
    return get_model("mockllm/model", custom_outputs=[call, said] * times)


class ByBytes:
    """Counts tokens without the tables that the real one downloads: tests have no network."""

    def encode(self, text: str, **_: object) -> list[int]:
        return list(text.encode())


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: ByBytes())


def entries(log: EvalLog) -> list[dict]:
    samples = log.samples or []
    events = [event for sample in samples for event in sample.events]
    return [event.data for event in events if event.event == "info" and event.source == "tierbox"]


def test_an_eval_runs_and_its_log_says_in_what(tmp_path: Path, profile: str) -> None:
    sample = Sample(
        input="What is in the file?", target="tide", files={"secret.txt": "tide"}, setup="#!/bin/sh\ntest -f secret.txt && touch ready\n"
    )
    task = Task(
        dataset=[sample],
        solver=basic_agent(tools=[bash(timeout=30)]),
        scorer=includes(),
        sandbox=("tierbox", profile),
        epochs=3,
    )
    (log,) = run_eval(task, model=model(3), log_dir=str(tmp_path), display="none", max_samples=1)
    assert log.status == "success", log.error
    assert log.results and log.results.scores[0].metrics["accuracy"].value == 1.0
    outputs = [m.text for s in log.samples or [] for m in s.messages if m.role == "tool" and m.function == "bash"]
    assert outputs == ["tideagent\n"] * 3
    told = entries(log)
    assert len(told) == 3
    for entry in told:
        assert entry["tier"] == "T0.H1.N2" and entry["principal"] == "harness"
        assert entry["tooling"] == "declared; enforced by Inspect's tools and approvals"
        found = entry["attestation"]["verification"]["probes"]
        assert found and not [probe for probe in found if probe["status"] == "fail"]
        enforced = {m["name"] for m in entry["report"]["mechanisms"] if m["applied"] == "enforced"}
        assert {"seccomp", "network namespace"} <= enforced
    left = _daemon.ask_now("GET", "/v1/environments")["environments"]
    assert left == []


@scorer(metrics=[accuracy()])
def stayed_within() -> Scorer:
    """Right if the agent asked for no name that is not listed."""

    async def score(state: TaskState, target: Target) -> Score:
        decisions = await sandbox().as_type(TierboxSandboxEnvironment).decisions()
        asked = {one["name"]: one["verdict"] for one in decisions if not one.get("verification")}
        return Score(value="refused" not in asked.values(), metadata=asked)

    return score


def test_a_scorer_reads_what_the_gateway_decided(tmp_path: Path) -> None:
    from inspect_ai.util import SandboxEnvironmentSpec

    config = TierboxConfig("local-web", overrides={"network": {"allow": ["index.test"]}})
    for names, right in [(["index.test"], 1.0), (["index.test", "other.test"], 0.0)]:
        command = "; ".join(f"getent ahostsv4 {name}" for name in names)
        asks = ModelOutput.for_tool_call("mockllm/model", "bash", {"command": command})
        ends = ModelOutput.for_tool_call("mockllm/model", "submit", {"answer": "done"})
        task = Task(
            dataset=[Sample("ask", target="done")],
            solver=basic_agent(tools=[bash(timeout=30)]),
            scorer=stayed_within(),
            sandbox=SandboxEnvironmentSpec("tierbox", config),
        )
        model = get_model("mockllm/model", custom_outputs=[asks, ends])
        (log,) = run_eval(task, model=model, log_dir=str(tmp_path), display="none")
        assert log.status == "success", log.error
        assert log.results and log.results.scores[0].metrics["accuracy"].value == right
        (sample,) = log.samples or []
        (score,) = (sample.scores or {}).values()
        verdicts = {"index.test": "allowed", "other.test": "refused"}
        assert score.metadata == {name: verdicts[name] for name in names}


def test_a_profile_is_found_beside_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tasks.py").write_text(TASKS)
    (tmp_path / "tasks" / "beside.toml").write_text('extends = "local"\ntier = "T0.H1.N2"\n')
    monkeypatch.chdir(tmp_path)
    (log,) = run_eval("tasks/tasks.py", model="mockllm/model", log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    assert [entry["profile"] for entry in entries(log)] == ["beside"]


def test_a_config_object_in_a_task(tmp_path: Path) -> None:
    config = TierboxConfig("local", overrides={"limits": {"pids": 99}})
    from inspect_ai.util import SandboxEnvironmentSpec

    task = Task(dataset=[Sample("hello", target="x")], solver=generate(), sandbox=SandboxEnvironmentSpec("tierbox", config))
    (log,) = run_eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    (entry,) = entries(log)
    assert any(limit["name"] == "pids" and limit["value"] == "99" for limit in entry["report"]["limits"])
