"""Latency, throttling, errors and lack of capacity, as the knobs say."""
import datetime
import random
import time

from .state import BUCKETS, INSTANCES, LOCK, THROTTLED as REFUSED, AwsError, count, knob, now, pick, take

THROTTLED = {"ec2": ("RequestLimitExceeded", "Request limit exceeded.", 503), "s3": ("SlowDown", "Please reduce your request rate.", 503)}
FAILED = {"ec2": "InternalError", "s3": "InternalError"}


def gate(operation, service, caller):
    """Before a call: counts it, delays it, and refuses it if it must fail."""
    count(caller, operation)
    time.sleep(pick(knob(caller, "latency_s"), operation))
    if random.random() < pick(knob(caller, "throttle"), operation) or over_rate(operation, caller):
        with LOCK:
            REFUSED[caller] += 1
        raise AwsError(*THROTTLED.get(service, ("ThrottlingException", "Rate exceeded")))
    if take(caller, "errors", operation):
        raise AwsError(FAILED.get(service, "InternalServerError"), "injected", 500)


def after(operation, service, caller):
    """After a call that took effect: its answer may still be an error."""
    if take(caller, "errors_after", operation):
        raise AwsError(FAILED.get(service, "InternalServerError"), "injected after the effect", 500)


def over_rate(operation, caller):
    rate = pick(knob(caller, "tps"), operation, None)
    if not rate:
        return False
    with LOCK:
        left, at = BUCKETS.get((caller, operation), (rate, now()))
        left = min(rate, left + (now() - at) * rate)
        BUCKETS[caller, operation] = (left - 1 if left >= 1 else left, now())
        return left < 1


def check_capacity(form, caller):
    """RunInstances: by type, by zone of the subnet, or for all."""
    kind = form.get("InstanceType", ["m1.small"])[0]
    table = knob(caller, "capacity")
    for key in (kind, zone_of(form), "*"):
        if key not in table:
            continue
        if not take(caller, "capacity", key):
            raise AwsError("InsufficientInstanceCapacity",
                           f"We currently do not have sufficient {kind} capacity in the Availability Zone you requested.", 500)
        return


def zone_of(form):
    from moto.ec2 import ec2_backends
    from .state import ACCOUNT
    subnet = (form.get("SubnetId") or form.get("NetworkInterface.1.SubnetId") or [None])[0]
    for backend in ec2_backends[ACCOUNT].values() if subnet else ():
        for zones in (backend.subnets.get(zone, {}) for zone in list(backend.subnets)):
            if subnet in zones:
                return zones[subnet].availability_zone
    return None


def check_visible(form):
    """Calls by id do not know what is too new."""
    for key, values in form.items():
        machine = INSTANCES.get(values[0]) if key.startswith("InstanceId") else None
        if machine and not machine.visible():
            raise AwsError("InvalidInstanceID.NotFound", f"The instance ID '{machine.id}' does not exist")


def presigned_expired(query, caller):
    """moto takes expired presigned URLs."""
    if "X-Amz-Date" in query:
        signed = datetime.datetime.strptime(query["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
        dies = signed + int(query["X-Amz-Expires"])
    else:
        dies = int(query.get("Expires", 0))
    return dies and dies - knob(caller, "presign_lapses_s") < now()
