"""One instance's machine: a root of its own over a shared image, namespaces, and an init that keeps them."""
import base64
import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time

from . import network, roles
from .state import INSTANCES, LOCK, knob, now

IMAGE = None  # the directory that every root lies over
BASE = None  # where the machines' disks are

# Runs in the new namespaces, as pid 1. The disk is an overlay, or in memory where the file system cannot carry one.
INIT = r"""set -e
mount -t overlay overlay -o lowerdir="$3",upperdir="$1/upper",workdir="$1/work" "$1/root" 2>/dev/null || {
  mount -t tmpfs tmpfs "$1/root"; mkdir "$1/root/upper" "$1/root/work" "$1/root/root"
  mount -t overlay overlay -o lowerdir="$3",upperdir="$1/root/upper",workdir="$1/root/work" "$1/root/root"
  mount --move "$1/root/root" "$1/root"
}
cd "$1/root"
mkdir -p dev proc sys run tmp home/ubuntu
mount -t tmpfs -o mode=755 tmpfs run; mkdir run/lock
ip link set lo up
printf 'nameserver 169.254.169.253\n' > etc/resolv.conf
mount --rbind /dev dev; mount -t tmpfs -o mode=1777 tmpfs dev/shm; mount -t proc proc proc; mount --rbind /sys sys 2>/dev/null || true
# The machine's own cgroups, as it had them by itself; where the host has none of version 2, those of the host.
[ ! -d "$4" ] || mount -t cgroup2 cgroup2 sys/fs/cgroup 2>/dev/null || true
hostname "$2"; echo "$2" > etc/hostname
printf '127.0.0.1 localhost %s\n' "$2" > etc/hosts
# There is no systemd: the end of pid 1 is the machine's.
cat > sbin/shutdown <<'END'
#!/bin/sh
for word; do case "$word" in now|+0) wait=0 ;; +*) wait=$((${word#+} * 60)) ;; -c) kill $(cat /run/shutdown.pid); exit ;; esac; done
setsid sh -c 'echo $$ > /run/shutdown.pid; sleep "$1"; kill -TERM 1' sh "${wait:-60}" </dev/null >/dev/null 2>&1 &
END
printf '#!/bin/sh\nexec /sbin/shutdown now\n' > sbin/poweroff
# Nor are there services: this starts what a unit says, as its user and with its ambient capabilities, and starts nothing again.
mkdir -p etc/systemd/system
cat > usr/bin/systemctl <<'END'
#!/bin/sh
verb= unit=
for word; do case "$word" in -*) ;; *) if [ -z "$verb" ]; then verb=$word; else unit=${word%.service}; fi ;; esac; done
file=/etc/systemd/system/$unit.service pid=/run/unit-$unit.pid
of() { sed -n "s/^$1=//p" "$file" | tail -n 1; }
alive() { [ -e "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; }
halt() { ! alive || { kill "$(cat "$pid")"; while alive; do sleep 0.05; done; }; }
begin() {
  [ -e "$file" ] || { echo "Unit $unit.service not found." >&2; exit 5; }
  user=$(of User) caps=$(of AmbientCapabilities | tr A-Z a-z | sed 's/cap_/+/g; s/ /,/g')
  set -- $(of ExecStart)
  [ -x "$1" ] || { echo "$1 cannot be executed." >&2; exit 1; }
  setsid setpriv --reuid="${user:-root}" --regid="${user:-root}" --clear-groups ${caps:+--inh-caps=-all,$caps --ambient-caps=-all,$caps} \
    --no-new-privs "$@" </dev/null >"/var/log/unit-$unit.log" 2>&1 &
  echo $! > "$pid"
}
case "$verb" in
  start) alive || begin ;;
  restart) halt; begin ;;
  stop) halt ;;
  is-active) alive && echo active || { echo inactive; exit 3; } ;;
  enable|daemon-reload) ;;
  *) echo "systemctl $verb is not imitated" >&2; exit 1 ;;
esac
END
chmod 755 sbin/shutdown sbin/poweroff usr/bin/systemctl
mkdir -p ../root; pivot_root . mnt; umount -l /mnt
exec /bin/bash -c 'echo ready > /run/booted; trap "exit 0" TERM; while :; do sleep 3600 & wait $!; done' </dev/null >/dev/null 2>&1
"""

# Begins the machine in a cgroup of its own, if the host has such of version 2.
ENTER = r"""group=$1; shift
[ -z "$group" ] || { mkdir -p "$group" && echo $$ > "$group/cgroup.procs"; } 2>/dev/null
exec "$@"
"""

# What the agent does: it lays the script into its directory and has sh run it there, as root and without a HOME. The script comes
# by stdin, because a path on the machine must not be followed from outside.
AGENT = r"""umask 077; mkdir -p "$1" && cat > "$1/_script.sh" && chmod 700 "$1/_script.sh" || exit 1
umask 022
cd "$2" 2>/dev/null || { echo "fork/exec /usr/bin/sh: no such file or directory" >&2; exit 1; }
exec sh -c "$1/_script.sh" </dev/null
"""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"


class Machine:
    """The life of one instance, beside moto's record of it."""

    def __init__(self, record, region, caller):
        self.record, self.id, self.region, self.caller = record, record.id, region, caller
        self.dir = os.path.join(BASE, record.id)
        self.unshare = self.init = self.interface = None
        self.down, self.launched, self.running_at, self.alive = False, now(), None, True
        self.registered = False  # SSM has seen the agent once
        self.slots = threading.Semaphore(self.knob("workers"))
        threading.Thread(target=self.boot, daemon=True).start()

    def knob(self, name):
        return knob(self.caller, name)

    def boot(self):
        time.sleep(self.knob("boot_s"))
        for part in ("upper", "work", "root"):
            os.makedirs(os.path.join(self.dir, part), exist_ok=True)
        with LOCK, open(self.console_path(), "wb") as console:
            if not self.alive:
                return
            self.unshare = subprocess.Popen(
                ["sh", "-c", ENTER, "sh", self.cgroup(), "unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork",
                 "--kill-child", "--propagation", "private", "sh", "-c", INIT, "sh", self.dir, self.id, IMAGE, self.cgroup()],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        if not self.wait_booted(self.unshare):
            return
        try:
            network.vpc_of(self).join(self)
        except Exception as error:
            print("no network:", self.id, error, getattr(error, "stderr", b""), flush=True)
            return
        with LOCK:
            if not self.alive:
                return
            self.state("running", 16)
            self.running_at = now()
        threading.Thread(target=self.watch, args=(self.unshare,), daemon=True).start()
        self.run_user_data()

    def wait_booted(self, unshare):
        if unshare is None:  # it was terminated while it booted
            return False
        while unshare.poll() is None:
            with contextlib.suppress(OSError), open(f"/proc/{unshare.pid}/task/{unshare.pid}/children") as children:
                init = children.read().split()
            if init and os.path.exists(f"/proc/{init[0]}/root/run/booted"):
                self.init = init[0]
                return True
            time.sleep(0.01)
        if self.alive:
            print("no boot:", self.id, self.console(), flush=True)
        return False

    def watch(self, unshare):
        """A machine that ends by itself is stopped or terminated, as its launch said."""
        unshare.wait()
        with LOCK:
            if not self.alive or self.unshare is not unshare:
                return
        if self.record.instance_initiated_shutdown_behavior == "terminate":
            self.record.terminate()
        else:
            self.record.stop()

    def state(self, name, code):
        self.record._state.name, self.record._state.code = name, code

    def console_path(self):
        return os.path.join(self.dir, "console.log")

    def console(self):
        with contextlib.suppress(OSError), open(self.console_path(), errors="replace") as console:
            return console.read()
        return ""

    def run_user_data(self):
        text = user_data(self.record).encode()
        if not text.startswith(b"#!"):
            return
        with open(self.console_path(), "ab") as console:
            process = self.popen("/var/lib/cloud/instance", "/", stdout=console, stderr=console)
        self.feed(process, text)

    def popen(self, directory, cwd, env=None, **streams):
        """A script on the machine; `feed` gives it its text."""
        base = {"PATH": PATH, "LANG": "C.UTF-8", "AWS_SSM_INSTANCE_ID": self.id, "AWS_SSM_REGION_NAME": self.region, **(env or {})}
        return subprocess.Popen(
            ["nsenter", "-t", self.init, "-m", "-p", "-u", "-i", "-n", f"--root=/proc/{self.init}/root", f"--wd=/proc/{self.init}/root", "--",
             "sh", "-c", AGENT, "sh", directory, cwd],
            env=base, stdin=subprocess.PIPE, start_new_session=True, **streams)

    @staticmethod
    def feed(process, script):
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(script)
            process.stdin.close()

    def known(self):
        """Whether SSM takes commands for it: the agent was there once, and the machine is not gone."""
        self.registered = self.registered or self.online()
        return self.alive and self.registered

    def online(self):
        return bool(self.alive and self.running_at and now() - self.running_at >= self.knob("ssm_online_s")
                    and (roles.profile(self) or not self.knob("require_instance_profile"))
                    and (network.reaches_ssm(self) or not self.knob("require_endpoints")))

    def visible(self):
        return now() - self.launched >= self.knob("ec2_visible_s")

    def reboot(self):
        """The same disk, and nothing that ran."""
        with LOCK:
            self.end_processes()
            self.running_at = None
        self.boot()

    def end_processes(self):
        unshare, self.unshare = self.unshare, None
        network.leave(self)
        if unshare:
            unshare.kill()
            unshare.wait()
            self.remove_cgroups()

    def cgroup(self):
        roots = (root for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if os.path.exists(root + "/cgroup.controllers"))
        return next((f"{root}/tierbox-aws-{self.id}" for root in roots), "")

    def remove_cgroups(self):
        """Those that commands made in it, too; one with a process that still dies stays for the host's next start."""
        for _ in range(50):
            for directory, _, _ in os.walk(self.cgroup() or "/nowhere", topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            if not os.path.exists(self.cgroup()):
                return
            time.sleep(0.01)

    def stop(self, final):
        """Ends what runs; with `final` the disk goes too, as at TerminateInstances."""
        with LOCK:
            self.alive, self.running_at = False, None
            self.end_processes()
        if not final:
            return
        self.state("shutting-down", 32)

        def end():
            time.sleep(self.knob("terminate_s"))
            self.state("terminated", 48)
            shutil.rmtree(self.dir, ignore_errors=True)
        threading.Thread(target=end, daemon=True).start()


def user_data(record):
    """What an instance was launched with: moto has a class of its own for Base64, and of a template's instances the bare text."""
    given = record.user_data or ""
    return base64.b64decode(given).decode() if isinstance(given, str) else given.decode()


def of_region(region):
    return {id: machine for id, machine in list(INSTANCES.items()) if machine.region == region}


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
