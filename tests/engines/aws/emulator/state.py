"""What the whole server shares: its knobs, its counters, and what exists."""
import collections
import datetime
import threading
import time

ACCOUNT = "123456789012"  # moto's default account

# Every knob, with its default. A caller may have values of its own (see `knob`), so that tests which run at once do not
# disturb each other: what one test switches holds for requests that are signed with its access key, and for what these made.
KNOBS = {
    "boot_s": 0.2,  # RunInstances: pending -> running
    "ssm_online_s": 0.5,  # running -> Online in DescribeInstanceInformation
    "require_instance_profile": False,  # SSM never sees an instance without one
    "require_endpoints": False,  # without a way out, SSM sees an instance only if its VPC has the endpoints
    "terminate_s": 0.1,  # shutting-down -> terminated
    "ec2_visible_s": 0.0,  # for this long after a launch, Describe calls do not know the instance
    "invocation_visible_s": 0.15,  # GetCommandInvocation says InvocationDoesNotExist for this long after SendCommand
    "clock_s": 0,  # how far SSM's clock is ahead of this host's
    "deliver_s": 0.05,  # Pending -> InProgress: the message reaches the agent
    "report_s": 0.05,  # the end of the process -> a terminal status is visible
    "delivery_timeout_scale": 1.0,  # TimeoutSeconds has a minimum of 30, which tests may shrink
    "execution_timeout_scale": 1.0,
    "workers": 5,  # commands that an agent runs at once
    "max_document_bytes": 99000,  # SendCommand refuses longer parameters
    "latency_s": {},  # {"SendCommand": 0.08, "*": 0.03}: added to every answer
    "throttle": {},  # {"SendCommand": 0.3, "ec2:RunInstances": 1.0, "*": 0}: probability
    "tps": {},  # {"GetCommandInvocation": 10}: a token bucket whose burst is its rate
    "capacity": {},  # {"p5.48xlarge": 0, "us-east-1a": 0, "*": 3}: the next N launches, then InsufficientInstanceCapacity
    "errors": {},  # {"SendCommand": 2}: the next N calls answer HTTP 500 and do nothing
    "errors_after": {},  # {"SendCommand": 2}: the next N calls take effect and answer HTTP 500 all the same
    "page": 0,  # DescribeInstances answers in pages of at most so many, where pages are asked for
    "stack_fails": {},  # {"GatewayInstance": 1}: the next N times that an update makes this resource, it fails
    "names": {},  # {"private.test": "10.255.0.10"}: where names lead that are asked for by a machine, if not to the outside
    "presign_lapses_s": 0,  # presigned URLs die this much earlier than they say
}

LOCK = threading.RLock()
INSTANCES = {}  # instance id -> Machine
COMMANDS = {}  # command id -> (its description, {instance id: Invocation})
CALLS = collections.defaultdict(collections.Counter)  # access key -> operation -> how many
THROTTLED = collections.Counter()  # access key -> calls that were refused for their number
BUCKETS = {}  # (access key, operation) -> (tokens left, when)
OVERRIDES = collections.defaultdict(dict)  # access key -> its own knobs

now = time.time


def knob(caller, name):
    """A knob as this caller has it."""
    return OVERRIDES[caller].get(name, KNOBS[name]) if caller in OVERRIDES else KNOBS[name]


def pick(table, key, default=0):
    """A value by name out of a knob that is a table, or what it has for everything else."""
    return table.get(key, table.get("*", default))


def take(caller, name, key):
    """Takes one off a countdown such as `errors`; says whether there was one."""
    with LOCK:
        table = knob(caller, name)
        if table.get(key, 0) < 1:
            return False
        table[key] -= 1
        return True


def count(caller, operation):
    with LOCK:
        CALLS[caller][operation] += 1


def iso(at):
    return datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if at else ""


class AwsError(Exception):
    """An answer that is an error: its code, its text, its HTTP status."""

    def __init__(self, code, message="", status=400):
        super().__init__(code)
        self.code, self.message, self.status = code, message, status
