"""Updates of a stack, of which moto sees neither changed parameters nor conditions: what appears is made, what is no longer there is
removed, and what stays is changed in place where this server knows how. What it does not know is refused before anything is done, and
what fails on the way is undone, as CloudFormation does."""
import copy
import json

from .state import ACCOUNT, AwsError, take


def hook_cloudformation():
    from moto.cloudformation.exceptions import ValidationError
    from moto.cloudformation.models import Stack

    def update(self, template, role_arn=None, parameters=None, tags=None):
        before = (self.template, self.parameters)
        change = Change(self, template, {**(parameters or {})})
        if template == before[0] and not change.differs():
            change.become(*before)
            raise ValidationError(self.name, message="No updates are to be performed.")
        event(self, "UPDATE_IN_PROGRESS", "User Initiated")
        try:
            change.make()
        except Refused as refused:
            change.undo(*before)
            event(self, "UPDATE_FAILED", refused.why, refused.name)
            event(self, "UPDATE_ROLLBACK_IN_PROGRESS", f"The following resource(s) failed to update: [{refused.name}].")
            event(self, "UPDATE_ROLLBACK_COMPLETE")
            self.status = "UPDATE_ROLLBACK_COMPLETE"
            return
        change.clean()
        self.status = "UPDATE_COMPLETE"
        event(self, "UPDATE_COMPLETE")
        self.role_arn, self.tags = role_arn, tags if tags is not None else self.tags
    Stack.update = update
    hook_previous()
    hook_associations()
    hook_deletion()


def hook_previous():
    """A parameter that was never given has the template's own value as its previous one."""
    from moto.cloudformation.models import CloudFormationBackend
    resolve = CloudFormationBackend._resolve_update_parameters

    def resolved(self, instance, incoming_params):
        known = [each for each in incoming_params if not each.get("UsePreviousValue") or each["ParameterKey"] in instance.parameters]
        return resolve(self, instance, known)
    CloudFormationBackend._resolve_update_parameters = resolved


def hook_associations():
    """The route table of a subnet, which moto notes for a template where nobody who asks for route tables sees it."""
    from moto.ec2.models.subnets import SubnetBackend
    create = SubnetBackend.create_subnet_association

    def created(self, route_table_id, subnet_id):
        self.associate_route_table(route_table_id, subnet_id=subnet_id)
        return create(self, route_table_id, subnet_id)
    SubnetBackend.create_subnet_association = created


def disassociate(subnet):
    from moto.ec2 import ec2_backends
    for backend in ec2_backends[ACCOUNT].values():
        for table in backend.route_tables.values():
            for id in [id for id, other in table._associations.items() if other == subnet]:
                del table._associations[id]


def hook_deletion():
    """What was made last goes first, since it may depend on the others; moto takes any order, and leaves endpoints and
    route tables. A stack of which something cannot be removed is there still, and says what; moto forgets it."""
    from moto.cloudformation.models import CloudFormationBackend
    from moto.cloudformation.parsing import ResourceMap
    delete_stack = CloudFormationBackend.delete_stack

    def deleted(self, name_or_stack_id):
        for stack in [each for each in self.stacks.values() if name_or_stack_id in (each.name, each.stack_id)]:
            try:
                delete_stack(self, stack.stack_id)
            except Stays as stays:
                self.stacks[stack.stack_id] = stack
                event(stack, "DELETE_FAILED", stays.message, stays.resource)
                event(stack, "DELETE_FAILED", f"The following resource(s) failed to delete: [{stays.resource}].")
                stack.status = "DELETE_FAILED"
    CloudFormationBackend.delete_stack = deleted

    def delete(self):
        made = [name for name in self._parsed_resources if name in self._resource_json_map]
        remove(self, made[::-1], self._resource_json_map)
    ResourceMap.delete = delete


def event(stack, status, reason=None, resource=None):
    stack._add_stack_event(status, resource_status_reason=reason)
    if resource:
        stack.events[-1].logical_resource_id = resource


class Stays(AwsError):
    """Something that cannot be removed."""

    def __init__(self, resource, why):
        super().__init__("ValidationError", f"{resource} cannot be removed: {why}")
        self.resource = resource


class Refused(Exception):
    def __init__(self, name, why):
        super().__init__(why)
        self.name, self.why = name, why


class Change:
    def __init__(self, stack, template, parameters):
        self.stack, self.map = stack, stack.resource_map
        self.before = self.effective()
        self.made, self.changed = [], []
        self.become(template, parameters)

    def become(self, template, parameters):
        """The stack is read anew; nothing is made yet."""
        from moto.cloudformation.models import OutputMap
        stack, map = self.stack, self.map
        stack.template, stack.parameters = template, parameters
        stack._parse_template()
        map._template, map._resource_json_map, map.input_parameters = stack.template_dict, stack.template_dict["Resources"], parameters
        map.resolved_parameters = {}
        map.load_mapping()
        map.load_parameters()
        map.load_conditions()
        stack.output_map = OutputMap(map, stack.template_dict, stack.stack_id)

    def exists(self, name):
        condition = self.map._resource_json_map[name].get("Condition")
        return not condition or self.map.lazy_condition_map[condition]

    def effective(self, names=None):
        """What there is, by name, with every reference resolved."""
        from moto.cloudformation.parsing import clean_json
        resources = self.map._resource_json_map
        return {name: (resources[name]["Type"], clean_json(copy.deepcopy(resources[name].get("Properties", {})), self.map))
                for name in (names if names is not None else resources) if self.exists(name)}

    def differs(self):
        """Whether anything is to be done; nothing is done for it."""
        names = {name for name in self.map._resource_json_map if self.exists(name)}
        return names != set(self.before) or self.effective(self.before) != self.before

    def make(self):
        from moto.ec2.models.core import TaggedEC2Resource
        for name in self.map._ResourceMap__get_resources_in_dependency_order():
            if name in self.before or not self.exists(name):
                continue
            if take(caller(), "stack_fails", name):
                raise Refused(name, "injected")
            try:
                resource = self.map[name]
            except Exception as error:
                raise Refused(name, str(error)) from error
            self.made.append(name)
            if isinstance(resource, TaggedEC2Resource):
                tags = {**self.map.tags, "aws:cloudformation:logical-id": name}
                resource.ec2_backend.create_tags([resource.physical_resource_id], tags)
        self.modify()

    def modify(self):
        """All or nothing: what cannot be changed is found first."""
        now = self.effective([name for name in self.before if name in self.map._resource_json_map])
        steps = []
        for name, (kind, properties) in now.items():
            old_kind, old = self.before[name]
            different = {key for key in {*old, *properties} if old.get(key) != properties.get(key)}
            for key in different:
                if kind != old_kind or (kind, key) not in KNOWN:
                    raise Refused(name, f"this server cannot change {key} of {kind}")
                steps.append((KNOWN[kind, key], self.map[name], old, properties))
        for step, resource, old, properties in steps:
            step(resource, properties)
            self.changed.append((step, resource, old))

    def undo(self, template, parameters):
        for step, resource, old in reversed(self.changed):
            step(resource, old)
        made = {name: self.map._resource_json_map[name] for name in self.made}
        remove(self.map, self.made[::-1], made)
        self.become(template, parameters)

    def clean(self):
        """Removes what is there no longer, which nothing refers to any more."""
        gone = [name for name in self.before if name not in self.map._resource_json_map or not self.exists(name)]
        remove(self.map, gone[::-1], {name: {"Type": self.before[name][0], "Properties": self.before[name][1]} for name in gone})


def remove(map, names, descriptions):
    """In passes, for what depends on each other otherwise."""
    errors = {}
    for _ in range(len(names) + 1):
        for name in list(names):
            try:
                remove_one(map, map._parsed_resources[name], descriptions[name])
            except Exception as error:
                errors[name] = error
                continue
            del map._parsed_resources[name]
            names.remove(name)
    if names:
        raise Stays(names[0], getattr(errors[names[0]], "message", "") or errors[names[0]])


def remove_one(map, resource, description):
    if description["Type"] == "AWS::EC2::VPCEndpoint":
        if resource.state == "deleted":  # by who asked EC2 for it
            resource.ec2_backend.vpc_end_points.pop(resource.id, None)
            return
        # A table that an update added may be gone already.
        resource.route_table_ids = [table for table in resource.route_table_ids or [] if table in resource.ec2_backend.route_tables]
        resource.ec2_backend.delete_vpc_endpoints([resource.id])
        del resource.ec2_backend.vpc_end_points[resource.id]
    elif description["Type"] == "AWS::EC2::RouteTable":
        resource._associations.clear()
        resource.ec2_backend.delete_route_table(resource.id)
    elif description["Type"] == "AWS::EC2::SubnetRouteTableAssociation":
        disassociate(resource.subnet_id)
    elif description["Type"] == "AWS::IAM::ManagedPolicy":
        from moto.iam.models import iam_backends
        iam_backends[ACCOUNT]["aws"].delete_policy(resource.arn)
    elif description["Type"] == "AWS::EC2::InternetGateway":
        if resource.vpc:
            resource.ec2_backend.detach_internet_gateway(resource.id, resource.vpc.id)
        resource.ec2_backend.delete_internet_gateway(resource.id)
    elif description["Type"] == "AWS::EC2::Subnet" and occupied(resource):
        raise AwsError("DependencyViolation", f"The subnet '{resource.id}' has dependencies and cannot be deleted.")
    elif resource is not None:
        map._delete_resource(resource, description)


def occupied(subnet):
    """Whether an interface is in a subnet, an instance's or another: moto removes it all the same."""
    from .state import INSTANCES
    backend = subnet.ec2_backend
    lives = any(each.record.subnet_id == subnet.id and each.record._state.name != "terminated" for each in list(INSTANCES.values()))
    return lives or any(each.subnet.id == subnet.id and not each.attachment_id for each in list(backend.enis.values()))


def caller():
    from .instances import CALLER
    return getattr(CALLER, "key", "")


def route_tables(endpoint, properties):
    wanted, prefixes = properties.get("RouteTableIds") or [], endpoint.destination_prefix_list_id
    for table in wanted:
        if prefixes and table not in endpoint.route_table_ids:
            endpoint.ec2_backend.create_route(table, None, gateway_id=endpoint.id, destination_prefix_list_id=prefixes)
    for table in endpoint.route_table_ids:
        if prefixes and table not in wanted:
            endpoint.ec2_backend.delete_route(table, prefixes)
    endpoint.route_table_ids = list(wanted)


def policy_of_endpoint(endpoint, properties):
    endpoint.policy_document = json.dumps(properties["PolicyDocument"])


def rules_of_group(group, properties):
    from . import groups, network
    group.egress_rules = []
    groups.let_out_alone(group, properties["SecurityGroupEgress"])
    network.refresh()


def lives_of_objects(bucket, properties):
    from .bucket_policy import rule_of_api
    bucket.set_lifecycle([rule_of_api(rule) for rule in properties.get("LifecycleConfiguration", {}).get("Rules", [])])


def domains_of_list(found, properties):
    from . import firewall
    request = {"FirewallDomainListId": found.physical_resource_id, "Operation": "REPLACE", "Domains": properties["Domains"]}
    firewall.update_domains(request, "")


# What can be changed where it is: what a newer template or other parameters of infra/tierbox.yaml change.
KNOWN = {
    ("AWS::EC2::VPCEndpoint", "RouteTableIds"): route_tables,
    ("AWS::EC2::VPCEndpoint", "PolicyDocument"): policy_of_endpoint,
    ("AWS::EC2::SecurityGroup", "SecurityGroupEgress"): rules_of_group,
    ("AWS::S3::Bucket", "LifecycleConfiguration"): lives_of_objects,
    ("AWS::Route53Resolver::FirewallDomainList", "Domains"): domains_of_list,
}
