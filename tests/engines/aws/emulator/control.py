"""The server's own API, under /__emu__/: knobs, counters, faults of single machines."""
import copy

from . import app, network, roles
from .state import BUCKETS, CALLS, COMMANDS, INSTANCES, KNOBS, OVERRIDES, THROTTLED, now


def answer(what, body, query):
    """`?key=ACCESS_KEY` narrows a question or a setting to one caller."""
    key = query.get("key")
    if what == "config":
        return configure(body, key)
    if what == "agent":
        INSTANCES[body["InstanceId"]].down = bool(body["down"])
    elif what == "kill":  # the machine dies under its instance, as hardware does
        INSTANCES[body["InstanceId"]].end_processes()
    elif what == "seen":
        return {"seen": [each for each in list(network.SEEN) if body.get("InstanceId") in (None, each["instance"])]}
    elif what == "reset":
        reset()
    elif what != "state":
        return {"error": f"no such question: {what}"}
    return state(key)


def configure(body, key):
    unknown = sorted(set(body) - set(KNOBS))
    if unknown:
        return {"error": f"unknown knobs {unknown}"}
    (OVERRIDES[key] if key else KNOBS).update(copy.deepcopy(body))
    return state(key)


def reset():
    for machine in list(INSTANCES.values()):
        machine.stop(final=True)
    for table in (INSTANCES, COMMANDS, CALLS, BUCKETS, OVERRIDES, THROTTLED, app.TOKENS):
        table.clear()


def state(key):
    calls = {}
    for caller, counter in list(CALLS.items()):
        for operation, number in list(counter.items()) if key in (None, caller) else ():
            calls[operation] = calls.get(operation, 0) + number
    return {
        "config": {**KNOBS, **(OVERRIDES.get(key) or {})}, "calls": calls, "now": now(),
        "throttled": sum(count for caller, count in list(THROTTLED.items()) if key in (None, caller)),
        "commands": {id: {instance: each.status for instance, each in started.items()}
                     for id, (_, started) in list(COMMANDS.items()) if mine(started, key)},
        "instances": {id: {"state": machine.record._state.name, "online": machine.online(), "root": machine.dir, "role-key": roles.keys(machine)[0]}
                      for id, machine in list(INSTANCES.items()) if key in (None, machine.caller)},
    }


def mine(started, key):
    return key is None or any(each.caller == key for each in started.values())
