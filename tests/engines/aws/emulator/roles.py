"""The role of an instance, and the keys by which its requests are known."""
import hashlib

from .state import ACCOUNT, INSTANCES


def profile(machine):
    for association in machine.record.ec2_backend.iam_instance_profile_associations.values():
        if association.instance.id == machine.id:
            return association.iam_instance_profile
    return None


def of(machine):
    found = profile(machine)
    return found.roles[0] if found and found.roles else None


def keys(machine):
    """(access key, secret, session token) of the role on this instance; the same each time."""
    digest = hashlib.sha256(("role of " + machine.id).encode()).hexdigest()
    return "ASIA" + digest[:16].upper(), digest[16:56], "token-" + digest[:40]


def machine_of(access_key):
    return next((machine for machine in list(INSTANCES.values()) if keys(machine)[0] == access_key), None)


__all__ = ["ACCOUNT", "keys", "machine_of", "of", "profile"]
