"""Route 53 Resolver DNS Firewall, which moto lacks: its API, its CloudFormation types, and its verdicts."""
import fnmatch
import uuid

from .state import ACCOUNT, LOCK, AwsError

LISTS, GROUPS, ASSOCIATIONS, CONFIGS = {}, {}, {}, {}
BLOCKED = {"NODATA": "NODATA", "NXDOMAIN": "NXDOMAIN", "OVERRIDE": "NODATA"}


def identifier(kind):
    return f"rslvr-{kind}-{uuid.uuid4().hex[:17]}"


def arn(region, kind, id):
    return f"arn:aws:route53resolver:{region}:{ACCOUNT}:{kind}/{id}"


def missing(id):
    return AwsError("ResourceNotFoundException", f"[RSLVR-00802] could not find {id}")


def get(table, id):
    if id not in table:
        raise missing(id)
    return table[id]


def create_list(request, region):
    id = identifier("fdl")
    LISTS[id] = {"Id": id, "Arn": arn(region, "firewall-domain-list", id), "Name": request["Name"], "DomainCount": 0,
                 "Status": "COMPLETE", "domains": [dotted(each) for each in request.get("Domains", [])]}
    return LISTS[id]


def dotted(name):
    return name.lower().rstrip(".") + "."


def update_domains(request, region):
    found = get(LISTS, request["FirewallDomainListId"])
    given = {dotted(each) for each in request["Domains"]}
    now = set(found["domains"])
    found["domains"] = sorted({"ADD": now | given, "REMOVE": now - given, "REPLACE": given}[request["Operation"]])
    return {"Id": found["Id"], "Name": found["Name"], "Status": "COMPLETE"}


def create_group(request, region):
    id = identifier("frg")
    GROUPS[id] = {"Id": id, "Arn": arn(region, "firewall-rule-group", id), "Name": request["Name"], "Status": "COMPLETE",
                  "OwnerId": ACCOUNT, "ShareStatus": "NOT_SHARED", "rules": []}
    for rule in request.get("FirewallRules", []):  # CloudFormation has them inside
        add_rule({**rule, "FirewallRuleGroupId": id}, region)
    return GROUPS[id]


def add_rule(request, region):
    group = get(GROUPS, request["FirewallRuleGroupId"])
    get(LISTS, request["FirewallDomainListId"])
    kept = ("FirewallDomainListId", "Priority", "Action", "BlockResponse", "Name", "FirewallDomainRedirectionAction", "Qtype")
    rule = {"FirewallRuleGroupId": group["Id"], **{key: request[key] for key in kept if key in request}}
    rule["Priority"] = int(rule["Priority"])
    group["rules"] = sorted([*group["rules"], rule], key=lambda each: each["Priority"])
    return rule


def remove_rule(request, region):
    group = get(GROUPS, request["FirewallRuleGroupId"])
    gone = [rule for rule in group["rules"] if rule["FirewallDomainListId"] == request["FirewallDomainListId"]]
    if not gone:
        raise missing(request["FirewallDomainListId"])
    group["rules"].remove(gone[0])
    return gone[0]


def associate(request, region):
    get(GROUPS, request["FirewallRuleGroupId"])
    id = identifier("frgassoc")
    ASSOCIATIONS[id] = {"Id": id, "Arn": arn(region, "firewall-rule-group-association", id), "Name": request.get("Name", ""),
                        "FirewallRuleGroupId": request["FirewallRuleGroupId"], "VpcId": request["VpcId"],
                        "Priority": int(request["Priority"]), "MutationProtection": request.get("MutationProtection", "DISABLED"),
                        "Status": "COMPLETE"}
    return ASSOCIATIONS[id]


def config(vpc):
    return CONFIGS.setdefault(vpc, {"Id": identifier("fc"), "ResourceId": vpc, "OwnerId": ACCOUNT, "FirewallFailOpen": "DISABLED"})


def update_config(request, region):
    found = config(request["ResourceId"])
    found["FirewallFailOpen"] = request["FirewallFailOpen"]
    return found


def shown(entry):
    """An entry as the API shows it, without what it keeps for itself."""
    counts = {"DomainCount": len(entry["domains"])} if "domains" in entry else {"RuleCount": len(entry["rules"])} if "rules" in entry else {}
    return {**{key: value for key, value in entry.items() if key[0].isupper()}, **counts}


def page(request, key, rows):
    size, start = int(request.get("MaxResults") or 100), int(request.get("NextToken") or 0)
    rest = {"NextToken": str(start + size)} if start + size < len(rows) else {}
    return {key: [shown(row) if isinstance(row, dict) else row for row in rows[start:start + size]], **rest}


def associations(request, region):
    rows = [each for each in ASSOCIATIONS.values() if request.get("VpcId", each["VpcId"]) == each["VpcId"]
            and request.get("FirewallRuleGroupId", each["FirewallRuleGroupId"]) == each["FirewallRuleGroupId"]]
    return page(request, "FirewallRuleGroupAssociations", rows)


def one(key, call):
    return lambda request, region: {key: shown(call(request, region))}


API = {
    "CreateFirewallDomainList": one("FirewallDomainList", create_list),
    "GetFirewallDomainList": one("FirewallDomainList", lambda q, r: get(LISTS, q["FirewallDomainListId"])),
    "ListFirewallDomainLists": lambda q, r: page(q, "FirewallDomainLists", list(LISTS.values())),
    "ListFirewallDomains": lambda q, r: page(q, "Domains", get(LISTS, q["FirewallDomainListId"])["domains"]),
    "UpdateFirewallDomains": update_domains,
    "DeleteFirewallDomainList": one("FirewallDomainList", lambda q, r: get(LISTS, q["FirewallDomainListId"]) and LISTS.pop(q["FirewallDomainListId"])),
    "CreateFirewallRuleGroup": one("FirewallRuleGroup", create_group),
    "GetFirewallRuleGroup": one("FirewallRuleGroup", lambda q, r: get(GROUPS, q["FirewallRuleGroupId"])),
    "ListFirewallRuleGroups": lambda q, r: page(q, "FirewallRuleGroups", list(GROUPS.values())),
    "DeleteFirewallRuleGroup": one("FirewallRuleGroup", lambda q, r: get(GROUPS, q["FirewallRuleGroupId"]) and GROUPS.pop(q["FirewallRuleGroupId"])),
    "CreateFirewallRule": one("FirewallRule", add_rule),
    "DeleteFirewallRule": one("FirewallRule", remove_rule),
    "ListFirewallRules": lambda q, r: page(q, "FirewallRules", get(GROUPS, q["FirewallRuleGroupId"])["rules"]),
    "AssociateFirewallRuleGroup": one("FirewallRuleGroupAssociation", associate),
    "GetFirewallRuleGroupAssociation": one("FirewallRuleGroupAssociation", lambda q, r: get(ASSOCIATIONS, q["FirewallRuleGroupAssociationId"])),
    "DisassociateFirewallRuleGroup": one("FirewallRuleGroupAssociation", lambda q, r: get(ASSOCIATIONS, q["FirewallRuleGroupAssociationId"])
                                         and ASSOCIATIONS.pop(q["FirewallRuleGroupAssociationId"])),
    "ListFirewallRuleGroupAssociations": associations,
    "GetFirewallConfig": one("FirewallConfig", lambda q, r: config(q["ResourceId"])),
    "UpdateFirewallConfig": one("FirewallConfig", update_config),
}


def verdict(vpc, chain):
    """ALLOW, or what a blocked question is answered with. Every name of a chain is judged, until a rule trusts where its own leads."""
    for name in chain:
        said, trusts = judged(vpc, name)
        if said != "ALLOW" or trusts:
            return said
    return "ALLOW"


def judged(vpc, name):
    """What the first rule by priority of group and rule that names it says, and whether it trusts what the name leads to."""
    with LOCK:
        mine = sorted((each for each in ASSOCIATIONS.values() if each["VpcId"] == vpc), key=lambda each: each["Priority"])
        for association in mine:
            for rule in GROUPS.get(association["FirewallRuleGroupId"], {}).get("rules", []):
                if any(matches(pattern, name) for pattern in LISTS.get(rule["FirewallDomainListId"], {}).get("domains", [])):
                    said = BLOCKED[rule.get("BlockResponse", "NODATA")] if rule["Action"] == "BLOCK" else "ALLOW"
                    return said, rule.get("FirewallDomainRedirectionAction") == "TRUST_REDIRECTION_DOMAIN"
    return "ALLOW", False


def matches(pattern, name):
    """`*` stands for one or more whole labels at the start, or, alone, for everything."""
    return pattern in ("*.", name) or (pattern.startswith("*.") and fnmatch.fnmatch(name, "?" + pattern))


def hook_cloudformation():
    """The three types of the stack; moto finds them as subclasses."""
    from moto.core.common_models import CloudFormationModel

    def model(type_name, class_name, create, table):
        def make(cls, resource_name, cloudformation_json, account_id, region_name, **named):
            properties = cloudformation_json.get("Properties", {})
            return cls(create({"Name": resource_name, **properties}, region_name))

        def remove(cls, resource_name, cloudformation_json, account_id, region_name):
            for id, entry in list(table.items()):
                if resource_name in (id, entry["Name"]):
                    del table[id]

        def keep(cls, original, resource_name, cloudformation_json, account_id, region_name):
            return original

        return type(class_name, (CloudFormationModel,), {
            "__init__": lambda self, entry: setattr(self, "entry", entry),
            "cloudformation_name_type": staticmethod(lambda: "Name"),
            "cloudformation_type": staticmethod(lambda: type_name),
            "has_cfn_attr": classmethod(lambda cls, name: name in ("Id", "Arn")),
            "get_cfn_attribute": lambda self, name: self.entry[name],
            "create_from_cloudformation_json": classmethod(make),
            "update_from_cloudformation_json": classmethod(keep),
            "delete_from_cloudformation_json": classmethod(remove),
            "physical_resource_id": property(lambda self: self.entry["Id"]),
        })
    prefix = "AWS::Route53Resolver::Firewall"
    return [model(prefix + "DomainList", "FirewallDomainList", create_list, LISTS),
            model(prefix + "RuleGroup", "FirewallRuleGroup", create_group, GROUPS),
            model(prefix + "RuleGroupAssociation", "FirewallRuleGroupAssociation", associate, ASSOCIATIONS)]
