"""What a request that comes from inside a machine may do: presigned objects, and what its role's keys sign. The endpoint's policy holds."""
import fnmatch
import json

from . import groups, roles
from .network import record, vpc_of
from .state import INSTANCES, AwsError, count


def check(request):
    """Refuses a request of a machine that AWS would refuse; nothing for requests from elsewhere."""
    machine = INSTANCES.get(request.env.get("REMOTE_ADDR"))
    if machine is None:
        return
    if request.path.startswith("/__emu__/") or request.path.startswith("/moto-api"):
        raise AwsError("AccessDenied", "not from a machine", 403)
    presigned = "X-Amz-Signature" in request.query or "Signature" in request.query
    if presigned:
        return check_object(machine, request)
    signer = roles.machine_of(request.caller)
    operation = request.target.split(".")[-1] or request.env["REQUEST_METHOD"]
    record(machine, "api", service=request.service, operation=operation, role_of=signer.id if signer else None)
    if signer is None:
        count(f"inside:{machine.id}", "refused")
        raise AwsError("UnrecognizedClientException", "The security token included in the request is invalid.", 403)


def check_object(machine, request):
    bucket, _, key = request.path.lstrip("/").partition("/")
    record(machine, "object", method=request.env["REQUEST_METHOD"], bucket=bucket, key=key)
    endpoint = endpoint_of(machine)
    if endpoint is not None and not allowed(endpoint, bucket, key, request.env["REQUEST_METHOD"]):
        raise AwsError("AccessDenied", "The VPC endpoint's policy does not allow it", 403)
    if endpoint is not None and not groups.reaches_outside(machine):
        raise AwsError("AccessDenied", "The security groups let nothing out to S3 (in AWS, a time-out)", 403)


def endpoint_of(machine):
    """The gateway endpoint for S3 of the machine's VPC."""
    vpc = vpc_of(machine).id
    for endpoint in machine.record.ec2_backend.vpc_end_points.values():
        if endpoint.vpc_id == vpc and endpoint.service_name.endswith(".s3") and endpoint.vpc_endpoint_type in (None, "Gateway"):
            return endpoint
    return None


def allowed(endpoint, bucket, key, method):
    """By action and resource. Conditions are taken as met: there is one account here."""
    policy = endpoint.policy_document
    policy = json.loads(policy) if isinstance(policy, str) else policy
    action = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}.get(method, "s3:PutObject")
    resource = f"arn:aws:s3:::{bucket}/{key}"
    effects = {statement["Effect"] for statement in policy["Statement"]
               if fits(statement.get("Action"), action) and fits(statement.get("Resource"), resource)}
    return effects == {"Allow"}


def fits(patterns, text):
    patterns = [patterns] if isinstance(patterns, str) else patterns or []
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
