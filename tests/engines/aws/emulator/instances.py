"""Gives every instance of moto's a machine; moto's own states, instantly running and terminated, are replaced."""
import threading

from . import console, network
from .machine import Machine
from .state import INSTANCES, LOCK

CALLER = threading.local()  # whose request this thread serves


def hook():
    from moto.ec2.models import EC2Backend
    from moto.ec2.models.instances import Instance
    hook_life(Instance)
    hook_run(EC2Backend)
    hook_template(Instance)
    hook_describe(EC2Backend)
    console.hook()


def hook_life(Instance):
    terminate, stop, start = Instance.terminate, Instance.stop, Instance.start

    def new_terminate(self, *rest, **named):
        machine, state = INSTANCES.get(self.id), self._state
        if state.name in ("terminated", "shutting-down"):
            return type(state)(state.name, state.code)
        previous = terminate(self, *rest, **named)
        if machine:
            machine.stop(final=True)
        return previous

    def new_stop(self, *rest, **named):
        previous = stop(self, *rest, **named)
        if self.id in INSTANCES:
            INSTANCES[self.id].stop(final=False)
        return previous

    def new_start(self, *rest, **named):
        previous = start(self, *rest, **named)
        begin(self, self.ec2_backend.region_name)
        return previous

    def new_reboot(self):
        if self.id in INSTANCES:
            threading.Thread(target=INSTANCES[self.id].reboot, daemon=True).start()

    Instance.terminate, Instance.stop, Instance.start, Instance.reboot = new_terminate, new_stop, new_start, new_reboot


def begin(record, region):
    record._state.name, record._state.code = "pending", 0
    with LOCK:
        INSTANCES[record.id] = Machine(record, region, getattr(CALLER, "key", ""))


def hook_run(EC2Backend):
    run = EC2Backend.run_instances

    def new_run(self, *rest, **named):
        reservation = run(self, *rest, **named)
        for record in reservation.instances:
            begin(record, self.region_name)
        return reservation
    EC2Backend.run_instances = new_run


def hook_template(Instance):
    """The groups of a template's instance, of which moto reads the old spelling alone."""
    create = Instance.create_from_cloudformation_json.__func__

    def created(cls, resource_name, cloudformation_json, *rest, **named):
        record = create(cls, resource_name, cloudformation_json, *rest, **named)
        wanted = cloudformation_json["Properties"].get("SecurityGroupIds")
        if wanted:
            found = [record.ec2_backend.get_security_group_from_id(id) for id in wanted]
            record.security_groups = found
            for interface in record.nics.values():
                interface._group_set = list(found)
            network.refresh()
        return record
    Instance.create_from_cloudformation_json = classmethod(created)


def hook_describe(EC2Backend):
    """What is not visible yet is left out of lists; a request by id is refused before it gets here."""
    for name in ("describe_instances", "all_reservations"):
        inner = getattr(EC2Backend, name)

        def outer(self, *rest, inner=inner, **named):
            reservations = inner(self, *rest, **named)
            return [each for each in reservations if any(shown(record) for record in each.instances)]
        setattr(EC2Backend, name, outer)


def shown(record):
    machine = INSTANCES.get(record.id)
    return machine is None or machine.visible()
