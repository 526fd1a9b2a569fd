"""The role of an instance, and the keys by which its requests are known; roles of templates, of which moto leaves parts out."""
import hashlib
import json

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


def hook_cloudformation():
    """A template's role has the managed policies that it names, and its own policies as the JSON that they are."""
    from moto.iam.models import Role, iam_backends
    create, delete = Role.create_from_cloudformation_json.__func__, Role.delete_from_cloudformation_json.__func__

    def created(cls, resource_name, cloudformation_json, account_id, region_name, **named):
        role = create(cls, resource_name, cloudformation_json, account_id, region_name, **named)
        role.policies = {name: document if isinstance(document, str) else json.dumps(document, default=str)
                         for name, document in role.policies.items()}
        for arn in cloudformation_json["Properties"].get("ManagedPolicyArns", []):
            managed(iam_backends[account_id]["aws"], arn, region_name).attach_to(role)
        return role

    def deleted(cls, resource_name, cloudformation_json, account_id, region_name):
        role = iam_backends[account_id]["aws"].get_role(resource_name)
        for policy in list(role.managed_policies.values()):
            policy.detach_from(role)
        delete(cls, resource_name, cloudformation_json, account_id, region_name)
    Role.create_from_cloudformation_json = classmethod(created)
    Role.delete_from_cloudformation_json = classmethod(deleted)


def managed(backend, arn, region):
    """One of AWS's own policies; moto has their texts, and loads none of them unless it loads all."""
    from moto.iam.aws_managed_policies import aws_managed_policies_data
    from moto.iam.models import AWSManagedPolicy
    if arn not in backend.managed_policies:
        name = arn.rsplit("/", 1)[1]
        data = json.loads(aws_managed_policies_data)[name]
        backend.managed_policies[arn] = AWSManagedPolicy.from_data(name, ACCOUNT, region, data)
    return backend.managed_policies[arn]


__all__ = ["ACCOUNT", "hook_cloudformation", "keys", "machine_of", "of", "profile"]
