"""Security groups as packet filter rules. As in AWS they are stateful, allow only, and do not bind metadata, resolver and time."""

ESTABLISHED = "ct state established,related accept;"


def ruleset(machines, exempt):
    """For (address, machine) pairs: what each may send, and what each may be sent."""
    lines = ["table inet groups", "delete table inet groups", "table inet groups {"]
    for _, machine in machines:
        lines += chain(f"out_{machine.interface}", rules(machine, "egress_rules", "daddr", machines))
        lines += chain(f"in_{machine.interface}", rules(machine, "ingress_rules", "saddr", machines))
    out = " ".join(f'iifname "{machine.interface}" jump out_{machine.interface};' for _, machine in machines)
    into = " ".join(f'oifname "{machine.interface}" jump in_{machine.interface};' for _, machine in machines)
    free = f"iifname lo accept; ip daddr {{ {', '.join(exempt)} }} accept;"
    lines.append(f"chain outside {{ type filter hook input priority 0; policy drop; {ESTABLISHED} {free} {out} }}")
    # A packet from one machine to another passes both chains: its sender's groups let it out, its receiver's let it in.
    lines.append(f"chain sent {{ type filter hook forward priority 0; policy drop; {ESTABLISHED} {out} }}")
    lines.append(f"chain received {{ type filter hook forward priority 10; policy drop; {ESTABLISHED} {into} }}")
    lines.append("}")
    return "\n".join(lines) + "\n"


def chain(name, contents):
    return [f"chain {name} {{", *contents, "}"]


def of(machine):
    """The groups of a machine's interfaces, which are those of the instance unless the launch named interfaces."""
    found = {group.id: group for group in machine.record.dynamic_group_list}
    for interface in machine.record.nics.values():
        found.update({group.id: group for group in interface.group_set})
    return found


def rules(machine, which, field, machines):
    for group in of(machine).values():
        for rule in getattr(group, which):
            for peer in peers(rule, machines):
                yield f"{'' if peer == '0.0.0.0/0' else f'ip {field} {peer}'} {protocol(rule)} accept"


def peers(rule, machines):
    if rule.cidr_ipv4:
        yield rule.cidr_ipv4
    referenced = rule.source_group.get("GroupId")
    if referenced:
        yield from (address for address, machine in machines if referenced in of(machine))


def protocol(rule):
    kind = str(rule.ip_protocol)
    if kind == "-1":
        return ""
    if kind in ("tcp", "udp") and rule.from_port is not None and rule.from_port >= 0:
        return f"{kind} dport {rule.from_port}-{rule.to_port}"
    return f"meta l4proto {kind}"


def https(machine):
    """The rules that let TCP to port 443 out."""
    for group in of(machine).values():
        for rule in group.egress_rules:
            if rule.ip_protocol == "-1" or (rule.ip_protocol == "tcp" and rule.from_port <= 443 <= rule.to_port):
                yield rule


def reaches_outside(machine):
    """Whether HTTPS may go to anywhere, or to a service's prefix list."""
    return any(rule.cidr_ipv4 == "0.0.0.0/0" or rule.prefix_list_id for rule in https(machine))


def reaches_endpoints(machine):
    """Whether HTTPS may go to another group, as to that of the interface endpoints."""
    return any(rule.source_group or rule.cidr_ipv4 for rule in https(machine))


def let_out(group, rule):
    """A rule of a template for what goes out, which moto does not read at all."""
    peer, prefixes = rule.get("DestinationSecurityGroupId"), rule.get("DestinationPrefixListId")
    if str(rule["IpProtocol"]) == "-1" and rule.get("CidrIp") == "0.0.0.0/0":
        return  # there by itself
    group.ec2_backend.authorize_security_group_egress(
        group.id, str(rule["IpProtocol"]), rule.get("FromPort"), rule.get("ToPort"),
        [{"CidrIp": rule["CidrIp"]}] if "CidrIp" in rule else [], source_groups=[{"GroupId": peer}] if peer else [],
        prefix_list_ids=[{"PrefixListId": prefixes}] if prefixes else [])


def let_out_alone(group, wanted):
    if wanted and not any(each.get("CidrIp") == "0.0.0.0/0" and str(each["IpProtocol"]) == "-1" for each in wanted):
        group.egress_rules = [rule for rule in group.egress_rules if rule.cidr_ipv4 != "0.0.0.0/0" or rule.ip_protocol != "-1"]
    for rule in wanted or []:
        let_out(group, rule)


def hook_cloudformation():
    """A group that a template gives rules for what goes out has these alone; moto leaves the rule for everything beside them."""
    from moto.ec2.models.security_groups import SecurityGroup
    create = SecurityGroup.create_from_cloudformation_json.__func__

    def created(cls, resource_name, cloudformation_json, *rest, **named):
        group = create(cls, resource_name, cloudformation_json, *rest, **named)
        let_out_alone(group, cloudformation_json["Properties"].get("SecurityGroupEgress"))
        return group
    SecurityGroup.create_from_cloudformation_json = classmethod(created)
