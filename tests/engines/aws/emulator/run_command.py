"""SSM's API of commands and of the instances that it knows."""
import json
import re
import uuid

from .invocation import TERMINAL, Invocation
from .machine import of_region
from .state import ACCOUNT, COMMANDS, INSTANCES, LOCK, AwsError, iso, knob, now

EXECUTION_TIMEOUT = re.compile(r"([1-9][0-9]{0,4})|(1[0-6][0-9]{4})|(17[0-1][0-9]{3})|(172[0-7][0-9]{2})|(172800)")
PARAMETERS = {"commands", "workingDirectory", "executionTimeout"}


def tags_of(machine):
    return {tag["key"]: tag["value"] for tag in machine.record.get_tags()}


def targets(request, region):
    ids = list(request.get("InstanceIds") or [])
    for target in request.get("Targets") or []:
        for machine in of_region(region).values():
            by_id = target["Key"] == "InstanceIds" and machine.id in target["Values"]
            by_tag = target["Key"].startswith("tag:") and tags_of(machine).get(target["Key"][4:]) in target["Values"]
            if by_id or by_tag:
                ids.append(machine.id)
    return ids


def check(request, region, caller):
    """The refusals of SendCommand, in AWS's order as far as it is known."""
    parameters, timeout = request.get("Parameters") or {}, request.get("TimeoutSeconds", 3600)
    if request.get("DocumentName") != "AWS-RunShellScript":
        raise AwsError("InvalidDocument", "document AWS-RunShellScript only")
    if len(request.get("InstanceIds") or []) > 50:
        raise AwsError("ValidationException", "Value at 'instanceIds' failed to satisfy constraint: length less than or equal to 50")
    if not 30 <= timeout <= 2592000:
        raise AwsError("ValidationException",
                       f"Value '{timeout}' at 'timeoutSeconds' failed to satisfy constraint: greater than or equal to 30")
    limit = (parameters.get("executionTimeout") or ["3600"])[0]
    if set(parameters) - PARAMETERS or not parameters.get("commands") or not EXECUTION_TIMEOUT.fullmatch(limit):
        raise AwsError("InvalidParameters")
    if len(json.dumps(parameters)) > knob(caller, "max_document_bytes"):
        raise AwsError("MaxDocumentSizeExceeded", "The size limit of a document is 64 KB.")
    known = of_region(region)
    bad = [id for id in request.get("InstanceIds") or [] if id not in known or not known[id].known()]
    if bad:
        raise AwsError("InvalidInstanceId", f"Instances [[{', '.join(bad)}]] not in a valid state for account {ACCOUNT}")


def send_command(request, region, caller):
    check(request, region, caller)
    timeout, asked = request.get("TimeoutSeconds", 3600), now() + knob(caller, "clock_s")
    command = {
        "CommandId": str(uuid.uuid4()), "DocumentName": request["DocumentName"], "DocumentVersion": "$DEFAULT",
        "Comment": request.get("Comment", ""), "Parameters": request.get("Parameters") or {},
        "InstanceIds": request.get("InstanceIds") or [], "Targets": request.get("Targets") or [], "TimeoutSeconds": timeout,
        "OutputS3BucketName": request.get("OutputS3BucketName", ""), "OutputS3KeyPrefix": request.get("OutputS3KeyPrefix", ""),
        "RequestedDateTime": asked, "ExpiresAfter": asked + timeout, "MaxConcurrency": "50", "MaxErrors": "0",
    }
    with LOCK:
        started = {id: Invocation(command, INSTANCES[id], caller) for id in targets(request, region)}
        COMMANDS[command["CommandId"]] = (command, started)
    return {"Command": command_view(command["CommandId"], first=True)}


def command_view(id, first=False):
    command, started = COMMANDS[id]
    statuses = ["Pending"] if first else [each.status for each in started.values()]
    order = ("InProgress", "Delayed", "Pending", "Failed", "TimedOut", "Cancelled")
    overall = next((status for status in order if status in statuses), "Success")
    return {**command, "Status": overall, "StatusDetails": overall, "TargetCount": 0 if first else len(started),
            "CompletedCount": sum(status in TERMINAL for status in statuses),
            "ErrorCount": sum(status in ("Failed", "TimedOut") for status in statuses)}


def visible(request):
    """The invocations that a request asks for, newest first, without those that SSM does not show yet."""
    with LOCK:
        commands = sorted(COMMANDS.items(), key=lambda pair: -pair[1][0]["RequestedDateTime"])
    for id, (command, started) in commands:
        if request.get("CommandId", id) != id:
            continue
        for instance, each in started.items():
            age = now() + each.knob("clock_s") - command["RequestedDateTime"]
            if request.get("InstanceId", instance) == instance and age >= each.knob("invocation_visible_s"):
                yield each


def get_command_invocation(request, region, caller):
    for each in visible({"CommandId": request["CommandId"], "InstanceId": request["InstanceId"]}):
        return each.view()
    raise AwsError("InvocationDoesNotExist")


def page(request, key, rows, default=50):
    size, start = request.get("MaxResults", default), int(request.get("NextToken") or 0)
    rest = {"NextToken": str(start + size)} if start + size < len(rows) else {}
    return {key: rows[start:start + size], **rest}


def list_command_invocations(request, region, caller):
    wanted = {each["key"]: each["value"] for each in request.get("Filters") or []}
    rows = [invocation_row(each, request.get("Details")) for each in visible(request)
            if wanted.get("Status", each.status) == each.status and after(each, wanted.get("InvokedAfter"))]
    return page(request, "CommandInvocations", rows)


def after(invocation, moment):
    """Whether it was asked for after a moment in SSM's spelling (2026-01-02T03:04:05Z)."""
    return not moment or iso(invocation.command["RequestedDateTime"])[:19] >= moment[:19]


def invocation_row(invocation, details):
    view = invocation.view()
    error = "\n----------ERROR-------\n" + view["StandardErrorContent"] if view["StandardErrorContent"] else ""
    plugin = {"Name": view["PluginName"], "Status": view["Status"], "StatusDetails": view["StatusDetails"],
              "ResponseCode": view["ResponseCode"], "Output": (view["StandardOutputContent"] + error)[:2500]}
    kept = ("CommandId", "InstanceId", "Comment", "DocumentName", "Status", "StatusDetails", "StandardOutputUrl", "StandardErrorUrl")
    return {**{key: view[key] for key in kept}, "RequestedDateTime": invocation.command["RequestedDateTime"],
            "CommandPlugins": [plugin] if details else []}


def list_commands(request, region, caller):
    return page(request, "Commands", [command_view(id) for id in list(COMMANDS) if request.get("CommandId", id) == id])


def cancel_command(request, region, caller):
    if request["CommandId"] not in COMMANDS:
        raise AwsError("InvalidCommandId")
    for instance, each in COMMANDS[request["CommandId"]][1].items():
        if each.status not in TERMINAL and instance in (request.get("InstanceIds") or [instance]):
            if each.status == "InProgress":
                each.status = each.details = "Cancelling"
            each.cancelled.set()
    return {}


def describe_instance_information(request, region, caller):
    wanted = {}
    for each in (request.get("Filters") or []) + (request.get("InstanceInformationFilterList") or []):
        wanted[each.get("Key") or each.get("key")] = each.get("Values") or each.get("valueSet")
    rows = []
    for machine in of_region(region).values():
        ping = "ConnectionLost" if machine.down or not machine.online() else "Online"
        facts = {"InstanceIds": machine.id, "PingStatus": ping, "ResourceType": "EC2Instance", "PlatformTypes": "Linux",
                 **{"tag:" + key: value for key, value in tags_of(machine).items()}}
        if machine.known() and all(facts.get(key) in values for key, values in wanted.items()):
            rows.append({"InstanceId": machine.id, "PingStatus": ping, "LastPingDateTime": now(), "AgentVersion": "3.3.987.0",
                         "IsLatestVersion": True, "PlatformType": "Linux", "PlatformName": "Ubuntu", "PlatformVersion": "24.04",
                         "ResourceType": "EC2Instance", "IPAddress": machine.record.private_ip or "", "ComputerName": machine.id})
    return page(request, "InstanceInformationList", rows, 10)


def get_connection_status(request, region, caller):
    machine = of_region(region).get(request["Target"])
    connected = machine and machine.online() and not machine.down
    return {"Target": request["Target"], "Status": "connected" if connected else "notconnected"}


API = {
    "SendCommand": send_command,
    "GetCommandInvocation": get_command_invocation,
    "ListCommandInvocations": list_command_invocations,
    "ListCommands": list_commands,
    "CancelCommand": cancel_command,
    "DescribeInstanceInformation": describe_instance_information,
    "GetConnectionStatus": get_connection_status,
}
