#!/usr/bin/env python3
"""Deploys the stack, checks what it made and starts an instance in it. Usage: stack.py URL TEMPLATE"""
import json
import sys
import time
import uuid

import boto3

URL, TEMPLATE = sys.argv[1:]
PREFIX = "stack-" + uuid.uuid4().hex[:8]
KEYS = {"endpoint_url": URL, "region_name": "us-east-1", "aws_access_key_id": PREFIX, "aws_secret_access_key": "t"}
ec2, s3, iam, ssm, cloudformation, names = (
    boto3.client(service, **KEYS) for service in ("ec2", "s3", "iam", "ssm", "cloudformation", "route53resolver"))


def check(what, holds, note=""):
    print("ok  " if holds else "FAIL", what, note, flush=True)
    if not holds:
        sys.exit(1)


def until(condition, what, limit=60):
    end = time.time() + limit
    while time.time() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    sys.exit(f"FAIL after {limit} s: {what}")


def prefix_list():
    lists = ec2.describe_managed_prefix_lists()["PrefixLists"]
    return next(each["PrefixListId"] for each in lists if each["PrefixListName"] == "com.amazonaws.us-east-1.s3")


def deploy():
    parameters = {"Prefix": PREFIX, "S3PrefixList": prefix_list(), "Zones": "us-east-1a,us-east-1b"}
    with open(TEMPLATE) as template:
        cloudformation.create_stack(
            StackName=PREFIX, TemplateBody=template.read(), Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()])
    stack = until(lambda: ended(cloudformation.describe_stacks(StackName=PREFIX)["Stacks"][0]), "the stack")
    check("the stack is deployed", stack["StackStatus"] == "CREATE_COMPLETE", stack.get("StackStatusReason", ""))
    return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}


def ended(stack):
    return stack if not stack["StackStatus"].endswith("IN_PROGRESS") else None


def check_network(out):
    tables = ec2.describe_route_tables(Filters=[{"Name": "tag:aws:cloudformation:stack-name", "Values": [PREFIX]}])["RouteTables"]
    routes = [route.get("DestinationCidrBlock") for table in tables for route in table["Routes"]]
    check("no route of the isolated subnets leads out", len(tables) == 1 and "0.0.0.0/0" not in routes, routes)
    subnets = ec2.describe_subnets(SubnetIds=out["SubnetIds"].split(","))["Subnets"]
    check("two zones, no public addresses", len({each["AvailabilityZone"] for each in subnets}) == 2
          and not any(each["MapPublicIpOnLaunch"] for each in subnets))
    group = ec2.describe_security_groups(GroupIds=[out["SecurityGroupN2"]])["SecurityGroups"][0]
    open_to = [each["CidrIp"] for rule in group["IpPermissionsEgress"] for each in rule.get("IpRanges", [])]
    check("N2 lets nothing out to addresses, and nothing in", not open_to and not group["IpPermissions"], open_to)
    group = ec2.describe_security_groups(GroupIds=[out["SecurityGroupN0"]])["SecurityGroups"][0]
    check("N0 lets nothing in", not group["IpPermissions"])


def check_endpoints(out):
    found = ec2.describe_vpc_endpoints(Filters=[{"Name": "vpc-id", "Values": [out["VpcId"]]}])["VpcEndpoints"]
    by_name = {each["ServiceName"].rsplit(".", 1)[1]: json.loads(each["PolicyDocument"]) for each in found}
    check("four endpoints", sorted(by_name) == ["ec2messages", "s3", "ssm", "ssmmessages"], sorted(by_name))
    s3_rule = by_name.pop("s3")["Statement"]
    check("S3's reaches our bucket and account alone", len(s3_rule) == 1 and s3_rule[0]["Resource"] == f"arn:aws:s3:::{out['Bucket']}/*"
          and set(s3_rule[0]["Condition"]["StringEquals"]) == {"aws:PrincipalAccount", "aws:ResourceAccount"}, s3_rule)
    for name, policy in by_name.items():
        condition = policy["Statement"][0]["Condition"]["ArnEquals"]
        check(f"{name}'s serves our role alone", len(policy["Statement"]) == 1 and condition == {"aws:PrincipalArn": out["InstanceRoleArn"]})


def check_names(out):
    bound = names.list_firewall_rule_group_associations(VpcId=out["VpcId"])["FirewallRuleGroupAssociations"]
    check("the DNS firewall is bound to the network", [each["FirewallRuleGroupId"] for each in bound] == [out["FirewallRuleGroupId"]])
    rules = names.list_firewall_rules(FirewallRuleGroupId=out["FirewallRuleGroupId"])["FirewallRules"]
    lists = [names.list_firewall_domains(FirewallDomainListId=each["FirewallDomainListId"])["Domains"] for each in rules]
    check("it allows the endpoints' names, then blocks everything", [each["Action"] for each in rules] == ["ALLOW", "BLOCK"]
          and all(each.endswith(".us-east-1.amazonaws.com.") for each in lists[0]) and lists[1] == ["*."], lists)
    check("it trusts what the bucket's name leads to", rules[0].get("FirewallDomainRedirectionAction") == "TRUST_REDIRECTION_DOMAIN", rules)


def check_bucket(out):
    bucket = out["Bucket"]
    check("nothing of the bucket is public", all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()))
    encryption = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    check("it is encrypted", encryption["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256")
    rule = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"][0]
    check("what nothing removed is removed", rule["Status"] == "Enabled" and int(rule["Expiration"]["Days"]) == 1, rule)
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    check("without TLS there is no access", policy["Statement"][0]["Effect"] == "Deny" and "aws:SecureTransport" in str(policy))


def check_roles(out):
    role = out["InstanceRoleArn"].split("/")[-1]
    attached = [each["PolicyName"] for each in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]]
    check("the role has SSM core", attached == ["AmazonSSMManagedInstanceCore"], attached)
    inline = iam.list_role_policies(RoleName=role)["PolicyNames"]
    statements = [statement for name in inline for statement in iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]["Statement"]]
    check("and beyond it only denials", statements and all(each["Effect"] == "Deny" for each in statements), statements)
    version = iam.get_policy_version(PolicyArn=out["HarnessPolicyArn"], VersionId="v1")["PolicyVersion"]["Document"]["Statement"]
    passes = [each for each in version if "iam:PassRole" in each["Action"]]
    check("the harness may give away this role alone", [each["Resource"] for each in passes] == [out["InstanceRoleArn"]])
    wild = [action for each in version for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"]) if "*" in action]
    check("no action of the harness is a pattern", not wild, wild)


def check_instance(out):
    """An instance in the stack's network: SSM sees it through the endpoints alone, and nothing else is in reach."""
    control("config", {"require_endpoints": True, "require_instance_profile": True})
    image = ec2.describe_images()["Images"][0]["ImageId"]
    id = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, SubnetId=out["SubnetIds"].split(",")[0], SecurityGroupIds=[out["SecurityGroupN2"]],
                           IamInstanceProfile={"Name": out["InstanceProfile"]})["Instances"][0]["InstanceId"]
    try:
        until(lambda: ssm.describe_instance_information(Filters=[{"Key": "InstanceIds", "Values": [id]}])["InstanceInformationList"], "SSM")
        s3.put_object(Bucket=out["Bucket"], Key="x", Body=b"x")
        url = s3.generate_presigned_url("get_object", Params={"Bucket": out["Bucket"], "Key": "x"}, ExpiresIn=60)
        script = [f"curl -fsS '{url}' && echo; curl -sS -m 2 http://203.0.113.10/; echo $?",
                  "python3 -c \"import socket; socket.gethostbyname('secret.canary.test')\" 2>/dev/null; echo $?",
                  f"python3 -c \"import socket; socket.gethostbyname('{out['Bucket']}.s3.us-east-1.amazonaws.com')\"; echo $?"]
        command = ssm.send_command(InstanceIds=[id], DocumentName="AWS-RunShellScript", Parameters={"commands": script})["Command"]["CommandId"]
        row = until(lambda: done(command), "the command")
        check("files come, the outside and its names do not", row.split("\n")[:3] == ["x", "28", "1"], repr(row))
        check("the bucket's name is answered, wherever it leads", row.split("\n")[3:4] == ["0"], repr(row))
    finally:
        ec2.terminate_instances(InstanceIds=[id])
        until(lambda: ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"][0]["State"]["Name"] == "terminated", "its end")


def done(command):
    rows = ssm.list_command_invocations(CommandId=command, Details=True)["CommandInvocations"]
    return rows[0]["CommandPlugins"][0]["Output"] if rows and rows[0]["Status"] in ("Success", "Failed") else None


def control(question, body):
    import urllib.request
    request = urllib.request.Request(f"{URL}/__emu__/{question}?key={PREFIX}", json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request))


def main():
    out = deploy()
    for each in (check_network, check_endpoints, check_names, check_bucket, check_roles, check_instance):
        each(out)
    s3.delete_object(Bucket=out["Bucket"], Key="x")
    cloudformation.delete_stack(StackName=PREFIX)
    gone = [each["StackStatus"] for each in cloudformation.list_stacks()["StackSummaries"] if each["StackName"] == PREFIX]
    check("and it is removed", gone == ["DELETE_COMPLETE"], gone)


if __name__ == "__main__":
    main()
