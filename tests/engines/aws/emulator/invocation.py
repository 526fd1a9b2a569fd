"""One command on one instance, as the agent runs it and as SSM tells of it."""
import os
import posixpath
import threading
import time

from .machine import kill_group
from .state import ACCOUNT, iso, knob, now

PLUGIN = "awsrunShellScript/0.awsrunShellScript"
TERMINAL = ("Success", "Failed", "TimedOut", "Cancelled")
REBOOT = 194  # the exit code by which a script asks the agent to restart the machine and run it once more
OUT_LIMIT, ERR_LIMIT, CUT = 24000, 8000, "--output truncated--"


class Invocation:
    def __init__(self, command, machine, caller):
        self.command, self.machine, self.caller, self.process = command, machine, caller, None
        self.status = self.details = "Pending"
        self.code, self.out, self.err, self.started, self.ended = -1, b"", b"", None, None
        self.cancelled = threading.Event()
        threading.Thread(target=self.run, daemon=True).start()

    def knob(self, name):
        return knob(self.caller, name)

    def finish(self, status, details=None, code=-1):
        self.ended, self.code, self.details = now(), code, details or status
        self.status = status  # last: who sees a terminal status sees the rest

    def run(self):
        if self.delivered():
            try:
                self.execute()
            finally:
                self.machine.slots.release()

    def delivered(self):
        """Waits for the agent to take the message and to have a worker free; holds that worker when it returns true."""
        expires = now() + self.command["TimeoutSeconds"] * self.knob("delivery_timeout_scale")
        if self.cancelled.wait(self.knob("deliver_s")):
            return self.finish("Cancelled")
        while self.machine.down or not self.machine.online() or not self.machine.slots.acquire(timeout=0.02):
            if self.cancelled.is_set():
                return self.finish("Cancelled")
            if self.machine.down:
                self.status = self.details = "Delayed"
            if now() > expires or not self.machine.alive:
                return self.finish("TimedOut", "DeliveryTimedOut")
            time.sleep(0.02)
        return True

    def execute(self):
        self.status, self.details, self.started = "InProgress", "InProgress", now()
        verdict, code = self.attempt()
        if code == REBOOT and verdict is None:
            self.machine.reboot()
            verdict, code = self.attempt()
        if verdict == "gone":  # the machine went away: SSM never hears of the command again
            return
        if verdict is None and code:
            self.err += f"failed to run commands: exit status {code}".encode()
        self.upload()
        time.sleep(self.knob("report_s"))
        status = verdict or ("Failed" if code else "Success")
        self.finish(status, "ExecutionTimedOut" if status == "TimedOut" else status, code)

    def attempt(self):
        """Runs the script once; answers (what ended it if not itself, its exit code)."""
        parameters = self.command["Parameters"]
        limit = int((parameters.get("executionTimeout") or ["3600"])[0])
        limit = 3600 if limit < 5 else limit
        cwd = (parameters.get("workingDirectory") or [""])[0]
        command_id = self.command["CommandId"]
        directory = f"/var/lib/amazon/ssm/{self.machine.id}/document/orchestration/{command_id}/{PLUGIN}"
        read, write = os.pipe(), os.pipe()
        self.process = self.machine.popen(directory, cwd if cwd.startswith("/") else "/usr/bin", {"SSM_COMMAND_ID": command_id},
                                          stdout=read[1], stderr=write[1])
        os.close(read[1]), os.close(write[1])
        out, err = bytearray(), bytearray()
        pumps = [threading.Thread(target=pump, args=pair, daemon=True) for pair in ((read[0], out), (write[0], err))]
        for each in pumps:
            each.start()
        self.machine.feed(self.process, "\n".join(parameters["commands"]).encode() + b"\n")
        verdict = self.wait(pumps, now() + limit * self.knob("execution_timeout_scale"))
        code = self.process.wait() if verdict is None else 137
        # The agent takes every exit 137 (an OOM kill as well) for its own; the death of sh by a signal reaches it as -1.
        if verdict is None and code == 137:
            verdict = "TimedOut"
        self.out, self.err = bytes(out), bytes(err)
        return verdict, -1 if code < 0 else code

    def wait(self, pumps, deadline):
        """Like Go's Cmd.Wait: done only when both pipes have ended, so that a background child which keeps one holds it open."""
        pause = 0.004
        while any(each.is_alive() for each in pumps) or self.process.poll() is None:
            verdict = ("Cancelled" if self.cancelled.is_set() else "TimedOut" if now() > deadline
                       else None if self.machine.alive else "gone")
            if verdict:
                kill_group(self.process)
                return verdict
            time.sleep(pause)
            pause = min(pause * 1.2, 0.05)
        return None

    def upload(self):
        """Objects only for streams that are not empty, and before the status is terminal."""
        from moto.s3.models import s3_backends
        bucket = self.command["OutputS3BucketName"]
        for name, data in (("stdout", self.out), ("stderr", self.err)):
            if not bucket or not data:
                continue
            try:
                s3_backends[ACCOUNT]["aws"].put_object(bucket, self.key(name), data)
            except Exception as error:  # the agent logs it and goes on: the command's status does not show it
                print("upload failed:", bucket, name, type(error).__name__, flush=True)

    def key(self, name):
        prefix = self.command["OutputS3KeyPrefix"].strip("/")
        return posixpath.join(prefix, self.command["CommandId"], self.machine.id, PLUGIN, name)

    def url(self, name):
        bucket = self.command["OutputS3BucketName"]
        return f"https://s3.{self.machine.region}.amazonaws.com/{bucket}/{self.key(name)}" if bucket else ""

    def view(self):
        """What GetCommandInvocation tells: nothing of the output before the end."""
        status = self.status  # once: it may end while this is written
        done = status in TERMINAL
        return {
            "CommandId": self.command["CommandId"], "InstanceId": self.machine.id, "Comment": self.command["Comment"],
            "DocumentName": self.command["DocumentName"], "DocumentVersion": "$DEFAULT", "PluginName": "aws:runShellScript",
            "ResponseCode": self.code if done else -1,
            "ExecutionStartDateTime": iso(self.started), "ExecutionEndDateTime": iso(self.ended),
            "ExecutionElapsedTime": f"PT{(self.ended or now()) - self.started:.3f}S" if self.started else "",
            "Status": status, "StatusDetails": self.details if done else status,
            "StandardOutputContent": cut(self.out) if done else "",
            "StandardErrorContent": cut(self.err)[:ERR_LIMIT] if done else "",
            "StandardOutputUrl": self.url("stdout") if done else "", "StandardErrorUrl": self.url("stderr") if done else "",
        }


def cut(data):
    text = data.decode("utf-8", "replace")
    return text if len(text) < OUT_LIMIT else text[:OUT_LIMIT - len(CUT)] + CUT


def pump(source, sink):
    with open(source, "rb", buffering=0) as stream:
        for chunk in iter(lambda: stream.read(65536), b""):
            sink.extend(chunk)
