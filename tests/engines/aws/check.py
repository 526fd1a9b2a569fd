#!/usr/bin/env python3
"""Checks the server with boto3, AWS's own client: every behaviour that the backend leans on. Usage: check.py [port]"""
import json
import os
import sys
import time
import urllib.request
import uuid

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

URL = f"http://127.0.0.1:{sys.argv[1] if len(sys.argv) > 1 else '5055'}"
KEY = "check-" + uuid.uuid4().hex[:8]  # an access key of its own: what it switches disturbs nobody
BUCKET = KEY
CONFIG = Config(retries={"total_max_attempts": 1, "mode": "standard"}, s3={"addressing_style": "path"})
ec2, ssm, s3, iam = (boto3.client(service, config=CONFIG, endpoint_url=URL, region_name="us-east-1", aws_access_key_id=KEY,
                                  aws_secret_access_key="t") for service in ("ec2", "ssm", "s3", "iam"))
IMAGE = ec2.describe_images()["Images"][0]["ImageId"]
TERMINAL = ("Success", "Failed", "TimedOut", "Cancelled")
passed = 0


def emulator(question, body=None):
    data = json.dumps(body).encode() if body is not None else None
    return json.load(urllib.request.urlopen(urllib.request.Request(f"{URL}/__emu__/{question}?key={KEY}", data)))


class knobs:
    """Knobs of this caller for as long as a block runs."""

    def __init__(self, **values):
        self.values = values

    def __enter__(self):
        before = emulator("state")["config"]
        self.before = {name: before[name] for name in self.values}
        emulator("config", self.values)

    def __exit__(self, *_):
        emulator("config", self.before)


def check(name, holds, note=""):
    global passed
    passed += 1
    print(("ok   " if holds else "FAIL ") + name, note, flush=True)
    if not holds:
        sys.exit(1)


def code(call, *rest, **named):
    try:
        call(*rest, **named)
    except ClientError as error:
        return error.response["Error"]["Code"]


def launch(**more):
    instance = ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1, InstanceType="t3.small", **more)["Instances"][0]
    return instance["InstanceId"], instance["State"]["Name"]


def information(id):
    return ssm.describe_instance_information(Filters=[{"Key": "InstanceIds", "Values": [id]}])["InstanceInformationList"]


def until(condition, what, limit=30):
    begun = time.time()
    while time.time() - begun < limit:
        got = condition()
        if got:
            return got
        time.sleep(0.03)
    sys.exit(f"FAIL after {limit} s: {what}")


def online(id):
    begun = time.time()
    until(lambda: (information(id) or [{}])[0].get("PingStatus") == "Online", f"{id} online")
    return time.time() - begun


def send(id, *commands, timeout=None, parameters=None, **more):
    all_of_them = {"commands": list(commands), **({"executionTimeout": [str(timeout)]} if timeout else {}), **(parameters or {})}
    return ssm.send_command(InstanceIds=[id], DocumentName="AWS-RunShellScript", Parameters=all_of_them, **more)["Command"]["CommandId"]


def wait(command, id, seen=None):
    seen = seen if seen is not None else []

    def ended():
        try:
            invocation = ssm.get_command_invocation(CommandId=command, InstanceId=id)
            seen.append(invocation["Status"])
            return invocation if invocation["Status"] in TERMINAL else None
        except ClientError as error:
            seen.append(error.response["Error"]["Code"])
    return until(ended, f"the end of {command}", 40)


def run(id, *commands, **more):
    return wait(send(id, *commands, **more), id)


def read(key):
    return s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def check_launch():
    id, state = launch(TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "mark", "Value": KEY}]}])
    check("RunInstances answers pending", state == "pending", id)
    check("SendCommand before Online", code(send, id, "true") == "InvalidInstanceId")
    took = online(id)
    check("Online only after boot_s and ssm_online_s", took > 0.4, f"{took:.2f} s")
    filters = [{"Name": "tag:mark", "Values": [KEY]}, {"Name": "instance-state-name", "Values": ["running"]}]
    found = [each["InstanceId"] for group in ec2.describe_instances(Filters=filters)["Reservations"] for each in group["Instances"]]
    check("found by tag and state", found == [id])
    first, second = (ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1, ClientToken=KEY)["Instances"][0]["InstanceId"] for _ in "ab")
    check("ClientToken is idempotent", first == second)
    ec2.terminate_instances(InstanceIds=[first])
    return id


def check_commands(id):
    seen = []
    command = send(id, "echo out; echo err >&2; id -un; pwd; hostname; echo home=${HOME-unset}; exit 7",
                   OutputS3BucketName=BUCKET, OutputS3KeyPrefix="p/x/")
    got = wait(command, id, seen)
    check("runs for real: code and streams", (got["ResponseCode"], got["Status"]) == (7, "Failed")
          and got["StandardOutputContent"] == f"out\nroot\n/usr/bin\n{id}\nhome=unset\n"
          and got["StandardErrorContent"] == "err\nfailed to run commands: exit status 7", repr(got["StandardErrorContent"]))
    check("InvocationDoesNotExist at first", "InvocationDoesNotExist" in seen and seen[-1] == "Failed")
    prefix = f"p/x/{command}/{id}/awsrunShellScript/0.awsrunShellScript/"
    check("output in S3 at SSM's keys", read(prefix + "stdout").startswith(b"out\nroot") and b"err\n" in read(prefix + "stderr"))
    got = run(id, "true", OutputS3BucketName=BUCKET, OutputS3KeyPrefix="p/y")
    check("no object for an empty stream", s3.list_objects_v2(Bucket=BUCKET, Prefix="p/y")["KeyCount"] == 0)
    command = send(id, "head -c 100000 /dev/zero | tr '\\0' a; head -c 50000 /dev/zero | tr '\\0' b >&2",
                   OutputS3BucketName=BUCKET, OutputS3KeyPrefix="big")
    got = wait(command, id)
    check("inline output is cut at 24000 and 8000", len(got["StandardOutputContent"]) == 24000
          and got["StandardOutputContent"].endswith("--output truncated--") and len(got["StandardErrorContent"]) == 8000)
    key = f"big/{command}/{id}/awsrunShellScript/0.awsrunShellScript/stdout"
    check("the whole of it is in S3", s3.head_object(Bucket=BUCKET, Key=key)["ContentLength"] == 100000)
    run(id, "echo kept > /opt/f; (sleep 300 >/dev/null 2>&1 &) ; echo 1")
    got = run(id, "cat /opt/f; pgrep -c sleep")
    check("files and background processes stay", got["StandardOutputContent"].startswith("kept\n"))
    check("the host is untouched", not os.path.exists("/opt/f"))
    got = run(id, "#!/bin/bash", "[[ 1 == 1 ]] && echo bash; pwd", parameters={"workingDirectory": ["/etc"]})
    check("shebang and workingDirectory", got["StandardOutputContent"] == "bash\n/etc\n")
    got = run(id, "true", parameters={"workingDirectory": ["/not/there"]})
    check("a missing workingDirectory fails as the agent's does", got["ResponseCode"] == 1
          and got["StandardErrorContent"].startswith("fork/exec /usr/bin/sh: no such file"), repr(got["StandardErrorContent"]))
    got = run(id, "useradd -m agent 2>/dev/null; su -l agent -s /bin/bash << 'EOF'", "id -un; echo $HOME; echo no > /etc/x || echo denied", "EOF")
    check("other users", got["StandardOutputContent"] == "agent\n/home/agent\ndenied\n", repr(got["StandardErrorContent"]))
    begun = time.time()
    commands = [send(id, "sleep 1") for _ in range(6)]
    for each in commands:
        wait(each, id)
    check("six commands of 1 s take 2 s: five workers", time.time() - begun > 1.9, f"{time.time() - begun:.1f} s")
    rows = ssm.list_command_invocations(CommandId=commands[0], Details=True)["CommandInvocations"]
    check("ListCommandInvocations", rows[0]["Status"] == "Success" and rows[0]["CommandPlugins"][0]["ResponseCode"] == 0)
    check("big parameters are refused", code(send, id, "#" + "x" * 100000) == "MaxDocumentSizeExceeded")
    check("a bad executionTimeout", code(send, id, "true", timeout=999999) == "InvalidParameters")


def check_ends(id):
    begun = time.time()
    got = run(id, "sleep 60 & echo hi", timeout=5)
    check("a background child that holds stdout holds the command", got["Status"] == "TimedOut" and time.time() - begun > 4.5)
    got = run(id, "echo before; sleep 60", timeout=5)
    check("executionTimeout: TimedOut and 137", (got["Status"], got["ResponseCode"], got["StatusDetails"]) == ("TimedOut", 137, "ExecutionTimedOut")
          and got["StandardOutputContent"] == "before\n")
    got = run(id, "kill -9 $$")
    check("any exit 137 is TimedOut, as the real agent has it", (got["Status"], got["ResponseCode"]) == ("TimedOut", 137)
          and got["StandardErrorContent"] == "Killed\n", repr(got["StandardErrorContent"]))
    with knobs(execution_timeout_scale=0.01):
        got = run(id, "sleep 1; echo done", timeout=2)
        check("an executionTimeout under 5 means 3600", got["Status"] == "Success")
    command = send(id, "echo s; sleep 61")
    until(lambda: code(ssm.get_command_invocation, CommandId=command, InstanceId=id) is None, "the command is known")
    until(lambda: ssm.get_command_invocation(CommandId=command, InstanceId=id)["Status"] == "InProgress", "the command runs")
    ssm.cancel_command(CommandId=command, InstanceIds=[id])
    got = wait(command, id)
    check("CancelCommand", (got["Status"], got["ResponseCode"]) == ("Cancelled", 137))
    got = run(id, "pgrep -cxf 'sleep 61'; pgrep -cxf 'sleep 300'")
    check("the process group was killed", got["StandardOutputContent"] == "0\n1\n", repr(got["StandardOutputContent"]))
    got = run(id, "[ -e /opt/again ] && echo twice; touch /opt/again; exit $([ -e /opt/rebooted ] && echo 0 || { touch /opt/rebooted; echo 194; })")
    check("exit 194 restarts the machine and runs the script once more", got["Status"] == "Success" and got["StandardOutputContent"] == "twice\n",
          repr(got["StandardOutputContent"]))


def check_objects(id):
    up = s3.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "up"}, ExpiresIn=60)
    s3.put_object(Bucket=BUCKET, Key="down", Body=os.urandom(3_000_000))

    def down(seconds):
        return s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "down"}, ExpiresIn=seconds)
    got = run(id, f"set -e; curl -fsS -o /opt/got '{down(60)}'; curl -fsS -T /opt/got '{up}'")
    check("presigned GET and PUT with curl", got["Status"] == "Success" and read("up") == read("down"), got["StandardErrorContent"])
    with knobs(presign_lapses_s=100):
        got = run(id, f"curl -fsS -o /dev/null '{down(60)}'")
        check("an expired presigned URL is refused", got["ResponseCode"] == 22, got["StandardErrorContent"].split("\n")[0])
    name = "/aws/service/canonical/ubuntu/server/24.04/stable/current/%s/hvm/ebs-gp3/ami-id"
    for architecture, expected in (("amd64", "x86_64"), ("arm64", "arm64")):
        image = ssm.get_parameters(Names=[name % architecture])["Parameters"][0]["Value"]
        check(f"Ubuntu's parameter for {architecture}", ec2.describe_images(ImageIds=[image])["Images"][0]["Architecture"] == expected)


def check_faults(id):
    with knobs(throttle={"SendCommand": 1.0}):
        check("throttling", code(send, id, "true") == "ThrottlingException")
    with knobs(errors={"SendCommand": 1, "s3:GET": 1}):
        check("HTTP 500, once", code(send, id, "true") == "InternalServerError" and code(send, id, "true") is None)
        check("S3 errors", code(read, "down") == "InternalError" and code(read, "down") is None)
    with knobs(errors_after={"SendCommand": 1}):
        check("HTTP 500 after the effect", code(send, id, "touch /opt/did") == "InternalServerError")
        until(lambda: run(id, "[ -e /opt/did ]")["Status"] == "Success", "the command ran")
    with knobs(tps={"GetCommandInvocation": 2}):
        command = send(id, "true")
        got = [code(ssm.get_command_invocation, CommandId=command, InstanceId=id) for _ in range(12)]
        check("token bucket", "ThrottlingException" in got, got.count("ThrottlingException"))
    with knobs(capacity={"t3.small": 0}):
        check("InsufficientInstanceCapacity", code(launch) == "InsufficientInstanceCapacity")
    with knobs(ec2_visible_s=1.0):
        young, _ = launch()
        check("EC2's eventual consistency", code(ec2.describe_instances, InstanceIds=[young]) == "InvalidInstanceID.NotFound")
    return young


def check_lost_agent(id):
    online(id)
    with knobs(delivery_timeout_scale=0.05):
        emulator("agent", {"InstanceId": id, "down": True})
        got = wait(send(id, "true", TimeoutSeconds=30), id, seen := [])
        check("lost agent: Delayed, then DeliveryTimedOut", got["StatusDetails"] == "DeliveryTimedOut" and "Delayed" in seen)
        check("ConnectionLost", information(id)[0]["PingStatus"] == "ConnectionLost")
    ec2.terminate_instances(InstanceIds=[id])


def check_starts():
    with knobs(require_instance_profile=True):
        bare, _ = launch()
        until(lambda: state_of(bare) == "running", "running")
        iam.create_instance_profile(InstanceProfileName=KEY)
        with_profile, _ = launch(IamInstanceProfile={"Name": KEY})
        check("with an instance profile, Online", online(with_profile) > 0)
        check("without one, never", not information(bare))
    script, _ = launch(UserData="#!/bin/sh\necho from-user-data > /opt/ud; echo on the console\n", InstanceInitiatedShutdownBehavior="terminate")
    online(script)
    until(lambda: run(script, "cat /opt/ud")["StandardOutputContent"] == "from-user-data\n", "user data")
    check("user data runs, and the console shows it", "on the console" in ec2.get_console_output(InstanceId=script)["Output"])
    send(script, "shutdown -h now")
    until(lambda: state_of(script) == "terminated", "terminated")
    check("a machine that shuts down is terminated, as its launch said", True)
    ec2.terminate_instances(InstanceIds=[bare, with_profile])


def state_of(id):
    return ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"][0]["State"]["Name"]


def seen(id, what):
    return [each for each in emulator("seen", {"InstanceId": id})["seen"] if each["what"] == what]


TOKEN = "TOKEN=$(curl -fsS -m 3 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)"
GET = "curl -fsS -m 3 -H \"X-aws-ec2-metadata-token: $TOKEN\" http://169.254.169.254/latest/meta-data/"


def check_metadata():
    iam.create_role(RoleName=KEY, AssumeRolePolicyDocument="{}")
    iam.add_role_to_instance_profile(InstanceProfileName=KEY, RoleName=KEY)
    id, _ = launch(IamInstanceProfile={"Name": KEY}, MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 1})
    online(id)
    got = run(id, TOKEN, GET + "instance-id")
    check("metadata, by token", got["StandardOutputContent"] == id, repr(got["StandardErrorContent"]))
    got = run(id, "curl -sS -m 3 -o /dev/null -w '%{http_code}' http://169.254.169.254/latest/meta-data/instance-id")
    check("no metadata without a token where one is required", got["StandardOutputContent"] == "401", repr(got["StandardOutputContent"]))
    got = run(id, TOKEN, GET + f"iam/security-credentials/{KEY}")
    key = emulator("state")["instances"][id]["role-key"]
    check("the role's credentials", json.loads(got["StandardOutputContent"])["AccessKeyId"] == key)
    check("who asked is recorded", f"/latest/meta-data/iam/security-credentials/{KEY}" in [each["path"] for each in seen(id, "metadata")])
    # One hop further away, as in a container with a bridge of its own.
    got = run(id, "echo 1 >/proc/sys/net/ipv4/ip_forward; ip link add c0 type veth peer name c1; ip addr add 192.168.77.1/24 dev c0",
              "ip link set c0 up; unshare -n sleep 60 >/dev/null 2>&1 & P=$!; sleep 0.3; ip link set c1 netns $P",
              "nsenter -t $P -n sh -c 'ip addr add 192.168.77.2/24 dev c1; ip link set c1 up; ip route add default via 192.168.77.1'",
              "nft add table ip n; nft add chain ip n p '{ type nat hook postrouting priority 100; }'; nft add rule ip n p oifname eth0 masquerade",
              f"nsenter -t $P -n sh -c \"curl -sS -m 2 -o /dev/null http://169.254.169.254/latest/meta-data/; {TOKEN.replace('$', chr(92) + '$')}\"; echo $?; kill $P")
    check("the hop limit keeps a token from whoever is further away", got["StandardOutputContent"].strip() == "28", got["StandardOutputContent"] + got["StandardErrorContent"])
    got = run(id, "nft add table inet g; nft add chain inet g o '{ type filter hook output priority 0; }'",
              "nft add rule inet g o meta skuid != 0 ip daddr 169.254.169.254 reject", "useradd -m agent",
              f"su agent -s /bin/sh -c 'curl -sS -m 3 http://169.254.169.254/' ; echo $?", TOKEN, GET + "instance-id")
    check("rules of the guest bind its users", got["StandardOutputContent"] == "7\n" + id, got["StandardOutputContent"] + got["StandardErrorContent"])
    return id


def check_network(id):
    ask = "curl -s -m 2 -o /dev/null http://203.0.113.10/; echo $?"
    check("what the group lets out reaches the outside", run(id, ask)["StandardOutputContent"] == "0\n" and seen(id, "outside")[-1]["port"] == 80)
    got = run(id, "echo | openssl s_client -connect 203.0.113.10:443 -servername a.test 2>&1 | grep -c 'CN = outside'")
    check("it speaks TLS to whoever begins it", int(got["StandardOutputContent"]) > 0)
    with knobs(names={"private.test": "10.255.0.10", "mapped.test": "::ffff:10.255.0.10"}):
        got = run(id, "python3 -c \"import socket; print([socket.getaddrinfo(n + '.test', 80)[0][4][0] for n in ('private', 'mapped', 'a')])\"",
                  "curl -s -m 2 http://private.test/")
    check("names lead where a caller wants them to", got["StandardOutputContent"] == "['10.255.0.10', '::ffff:10.255.0.10', '203.0.113.10']\noutside\n",
          got["StandardOutputContent"] + got["StandardErrorContent"])
    vpc = ec2.create_vpc(CidrBlock="10.99.0.0/24")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.99.0.0/25")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName=KEY, Description=KEY, VpcId=vpc)["GroupId"]
    anything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    ec2.revoke_security_group_egress(GroupId=group, IpPermissions=anything)
    first, _ = launch(SubnetId=subnet, SecurityGroupIds=[group])
    second, _ = launch(SubnetId=subnet, SecurityGroupIds=[group])
    online(first), online(second)
    check("a group without rules lets nothing out", run(first, ask)["StandardOutputContent"] == "28\n" and not seen(first, "outside"))
    name = f"{KEY}.canary.test"
    got = run(first, f"python3 -c \"import socket; print(socket.gethostbyname('{name}'))\"")
    check("yet the resolver answers", got["StandardOutputContent"] == "203.0.113.10\n" and seen(first, "dns")[-1]["name"] == name + ".", got["StandardOutputContent"] + got["StandardErrorContent"])
    allow_only(vpc, ["ssm.us-east-1.amazonaws.com", "one.s3.us-east-1.amazonaws.com"], ["two.s3.us-east-1.amazonaws.com"])
    got = run(first, f"python3 -c \"import socket; print(socket.gethostbyname('ssm.us-east-1.amazonaws.com')); print(socket.gethostbyname('{name}'))\"")
    check("DNS Firewall: only what is listed", got["StandardOutputContent"] == "203.0.113.10\n" and seen(first, "dns")[-1]["verdict"] == "NODATA", got["StandardOutputContent"] + got["StandardErrorContent"])
    got = run(first, "python3 -c \"import socket; print(socket.gethostbyname_ex('two.s3.us-east-1.amazonaws.com')[0]); socket.gethostbyname('one.s3.us-east-1.amazonaws.com')\"")
    check("what a bucket's name leads to is blocked, unless it is trusted", got["StandardOutputContent"] == "s3-r-w.us-east-1.amazonaws.com\n"
          and seen(first, "dns")[-1]["verdict"] == "NODATA", got["StandardOutputContent"] + got["StandardErrorContent"])
    peer = ec2.describe_instances(InstanceIds=[second])["Reservations"][0]["Instances"][0]["PrivateIpAddress"]
    server = "import socket\ns = socket.create_server(('', 8000))\nwhile True:\n c = s.accept()[0]; c.recv(999); c.send(b'HTTP/1.0 200 OK\\r\\n\\r\\n'); c.close()"
    run(second, f"setsid python3 -c \"{server}\" >/dev/null 2>&1 </dev/null &")
    ask = f"for i in 1 2 3 4 5; do curl -s -m 1 -o /dev/null http://{peer}:8000/ && echo yes && break; sleep 0.2; done"
    among = [{"IpProtocol": "tcp", "FromPort": 8000, "ToPort": 8000, "UserIdGroupPairs": [{"GroupId": group}]}]
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=among)
    check("a way out is not yet a way in", run(first, ask)["StandardOutputContent"] == "")
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=among)
    check("members of one group, as its rules say", run(first, ask)["StandardOutputContent"] == "yes\n")
    ec2.terminate_instances(InstanceIds=[id, first, second])
    return vpc, subnet


def allow_only(vpc, names, trusted):
    firewall = boto3.client("route53resolver", config=CONFIG, endpoint_url=URL, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key="t")
    some = firewall.create_firewall_domain_list(CreatorRequestId="1", Name="some")["FirewallDomainList"]["Id"]
    every = firewall.create_firewall_domain_list(CreatorRequestId="2", Name="every")["FirewallDomainList"]["Id"]
    firewall.update_firewall_domains(FirewallDomainListId=some, Operation="ADD", Domains=names)
    firewall.update_firewall_domains(FirewallDomainListId=every, Operation="ADD", Domains=["*"])
    leads = firewall.create_firewall_domain_list(CreatorRequestId="7", Name="trusted")["FirewallDomainList"]["Id"]
    firewall.update_firewall_domains(FirewallDomainListId=leads, Operation="ADD", Domains=trusted)
    group = firewall.create_firewall_rule_group(CreatorRequestId="3", Name="only")["FirewallRuleGroup"]["Id"]
    firewall.create_firewall_rule(CreatorRequestId="4", FirewallRuleGroupId=group, FirewallDomainListId=some, Priority=1, Action="ALLOW", Name="a")
    firewall.create_firewall_rule(CreatorRequestId="8", FirewallRuleGroupId=group, FirewallDomainListId=leads, Priority=2, Action="ALLOW", Name="c",
                                  FirewallDomainRedirectionAction="TRUST_REDIRECTION_DOMAIN")
    firewall.create_firewall_rule(CreatorRequestId="5", FirewallRuleGroupId=group, FirewallDomainListId=every, Priority=3, Action="BLOCK",
                                  BlockResponse="NODATA", Name="b")
    firewall.associate_firewall_rule_group(CreatorRequestId="6", FirewallRuleGroupId=group, VpcId=vpc, Priority=101, Name="only")


def check_inside(vpc, subnet):
    """What a machine may ask of AWS: presigned objects that the endpoint's policy allows, and no API without keys that are somebody's."""
    other = BUCKET + "-other"
    s3.create_bucket(Bucket=other)
    for bucket in (BUCKET, other):
        s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    policy = {"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/*"}]}
    ec2.create_vpc_endpoint(VpcId=vpc, ServiceName="com.amazonaws.us-east-1.s3", PolicyDocument=json.dumps(policy))
    with knobs(require_endpoints=True):
        id, _ = launch(SubnetId=subnet)
        until(lambda: state_of(id) == "running", "running")
        check("without endpoints SSM never sees it", not information(id))
        for name in ("ssm", "ssmmessages"):
            ec2.create_vpc_endpoint(VpcId=vpc, ServiceName=f"com.amazonaws.us-east-1.{name}", VpcEndpointType="Interface", SubnetIds=[subnet])
        check("with them it does", online(id) >= 0)

    def ask(bucket):
        url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=60)
        return run(id, f"curl -s -o /dev/null -w '%{{http_code}}' '{url}'")["StandardOutputContent"]
    got = ask(BUCKET), ask(other)
    check("the endpoint's policy allows our bucket alone", got == ("200", "403"), got)
    got = run(id, f"curl -s -o /dev/null -w '%{{http_code}}' -H 'X-Amz-Target: AmazonSSM.ListCommands' -d '{{}}' {URL}/")
    check("no API for a machine without keys", got["StandardOutputContent"] == "403")
    ec2.terminate_instances(InstanceIds=[id])


def check_end(id):
    disk = emulator("state")["instances"][id]["root"]
    check("the disk is there", os.path.isdir(disk))
    send(id, "sleep 100")
    answer = ec2.terminate_instances(InstanceIds=[id])["TerminatingInstances"][0]
    check("Terminate: shutting-down", answer["CurrentState"]["Name"] == "shutting-down")
    until(lambda: state_of(id) == "terminated" and not os.path.exists(disk), "terminated, and the disk gone")
    check("to terminate it again is harmless", code(ec2.terminate_instances, InstanceIds=[id]) is None)
    check("no command on the dead", code(send, id, "true") == "InvalidInstanceId")


def main():
    s3.create_bucket(Bucket=BUCKET)
    id = check_launch()
    check_commands(id)
    check_ends(id)
    check_objects(id)
    young = check_faults(id)
    check_lost_agent(young)
    check_starts()
    vpc, subnet = check_network(check_metadata())
    check_inside(vpc, subnet)
    check_end(id)
    print(passed, "checks; calls:", emulator("state")["calls"])


if __name__ == "__main__":
    main()
