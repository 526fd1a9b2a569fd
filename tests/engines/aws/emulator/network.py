"""Networks that are real: a VPC is a network namespace, an instance another, and a pair of interfaces joins them.

In the VPC's namespace live what AWS has at fixed addresses (metadata, the resolver), one address that stands for the outside, and one
that stands for a private network that somebody has joined to it.
Security groups are packet filter rules there, so what they let through is what goes through.
"""
import contextlib
import ctypes
import ipaddress
import os
import selectors
import socket
import subprocess
import threading

from . import certificate, groups
from .state import LOCK, now

CLONE_NEWNET = 0x40000000
METADATA, RESOLVER, ROUTER = "169.254.169.254", "169.254.169.253", "169.254.1.1"
OUTSIDE = "203.0.113.10"  # an address for documentation: nobody's
PRIVATE = "10.255.0.10"  # in no VPC of the tests
OUTSIDE_PORTS = (53, 80, 443, 8443)
PUBLIC_RESOLVER = "1.1.1.1"  # somebody's in the world; here it is in a namespace, and nothing is ever sent there

VPCS = {}
SEEN = []  # what reached the outside, the resolver or the metadata: a test looks for its own instances
SERVER = None  # the server that serves AWS's API, on loopback of every machine as well
PORT = None
libc = ctypes.CDLL(None, use_errno=True)


def record(machine, what, **facts):
    with LOCK:
        SEEN.append({"at": now(), "instance": machine.id if machine else None, "what": what, **facts})
        del SEEN[:-20000]


def in_thread(work):
    """Runs something on a thread of its own, whose network namespace may change; answers what it answers."""
    result = []

    def run():
        try:
            result.append((work(), None))
        except BaseException as error:
            result.append((None, error))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = result[0]
    if error:
        raise error
    return value


def enter(namespace):
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def new_namespace():
    def make():
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    return in_thread(make)


def listener(namespace, address, kind=socket.SOCK_STREAM):
    """A socket that listens in a namespace. It is served here: sockets stay where they were made."""
    def make():
        enter(namespace)
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        if kind == socket.SOCK_STREAM:
            made.listen(128)
        return made
    return in_thread(make)


def run_in(namespace, command, text):
    """A program of the host's in a namespace, with its input."""
    subprocess.run(["nsenter", f"--net=/proc/self/fd/{namespace}", *command], input=text.encode(), check=True,
                   pass_fds=(namespace,), capture_output=True)


class Vpc:
    def __init__(self, id, cidr):
        self.id, self.machines, self.number = id, {}, 0
        self.namespace = new_namespace()
        self.resolver = str(ipaddress.ip_network(cidr)[2])
        self.mine = (METADATA, RESOLVER, self.resolver)
        addresses = "".join(f"addr add {address}/32 dev lo\n" for address in (*self.mine, ROUTER, OUTSIDE, PRIVATE, PUBLIC_RESOLVER))
        run_in(self.namespace, ["ip", "-batch", "-"], "link set lo up\n" + addresses)
        run_in(self.namespace, ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter"], "")
        self.serve()

    def serve(self):
        from . import metadata, resolver
        metadata.serve(listener(self.namespace, (METADATA, 80)), self)
        for address in (RESOLVER, self.resolver):
            resolver.serve(listener(self.namespace, (address, 53), socket.SOCK_DGRAM), self)
        resolver.serve(listener(self.namespace, (PUBLIC_RESOLVER, 53), socket.SOCK_DGRAM), self, is_public=True)
        for address, what in ((OUTSIDE, "outside"), (PRIVATE, "private")):
            for port in OUTSIDE_PORTS:
                background(outside, listener(self.namespace, (address, port)), self, what, port)

    def machine_at(self, address):
        """Whose address this is; the reverse path filter lets nobody use another's."""
        return self.machines.get(address)

    def join(self, machine):
        """Gives a machine that has just booted its interface."""
        address, init = machine.record.private_ip, machine.init
        with LOCK:
            self.number += 1
            name = f"v{self.number}"
            self.machines[address] = machine
        machine.interface = name
        run_in(self.namespace, ["ip", "-batch", "-"], f"""link add {name} type veth peer name eth0 netns {init}
            link set {name} up
            route replace {address}/32 dev {name}\n""")
        namespace = os.open(f"/proc/{init}/ns/net", os.O_RDONLY)
        try:
            run_in(namespace, ["ip", "-batch", "-"], f"""addr add {address}/32 dev eth0
                link set eth0 up
                route add {ROUTER} dev eth0 scope link
                route add default via {ROUTER} dev eth0\n""")
            LOOPBACK.add(listener(namespace, ("127.0.0.1", PORT)), machine)
        finally:
            os.close(namespace)
        self.filter()

    def leave(self, machine):
        with LOCK:
            self.machines = {address: other for address, other in self.machines.items() if other is not machine}
        LOOPBACK.remove(machine)

    def filter(self):
        """The rules of all groups, at once: they are never half there."""
        with LOCK:
            rules = groups.ruleset(list(self.machines.items()), self.mine)
            run_in(self.namespace, ["nft", "-f", "-"], rules)


class Loopback:
    """AWS's API on 127.0.0.1 of every machine, because that is what URLs for them name."""

    def __init__(self):
        self.selector, self.sockets = selectors.DefaultSelector(), {}
        self.wake, self.woken = os.pipe()
        self.selector.register(self.wake, selectors.EVENT_READ, None)
        background(self.run)

    def add(self, sock, machine):
        with LOCK:
            self.sockets[machine.id] = sock
            self.selector.register(sock, selectors.EVENT_READ, machine)
        os.write(self.woken, b".")

    def remove(self, machine):
        with LOCK:
            sock = self.sockets.pop(machine.id, None)
            if sock:
                self.selector.unregister(sock)
                sock.close()

    def run(self):
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    os.read(self.wake, 4096)
                    continue
                with contextlib.suppress(OSError):
                    connection, _ = key.fileobj.accept()
                    SERVER.process_request(connection, (key.data.id, 0))


LOOPBACK = None


def background(work, *arguments):
    threading.Thread(target=work, args=arguments, daemon=True).start()


def outside(listening, vpc, what, port):
    """Whoever gets here has left the VPC."""
    while True:
        connection, (address, _) = listening.accept()
        record(vpc.machine_at(address), what, port=port)
        background(answer_outside, connection, port)


def answer_outside(connection, port):
    """The same to whatever is said, also to nothing; in TLS to whoever begins it."""
    secured = port in (443, 8443)
    with contextlib.suppress(OSError), connection:
        # Whoever comes for TLS says something, however busy the machine is.
        connection.settimeout(5 if secured else 0.5)
        first = b""
        with contextlib.suppress(TimeoutError):
            first = connection.recv(65536, socket.MSG_PEEK)
        connection.settimeout(30 if secured else 2)
        if first.startswith(b"\x16\x03"):
            connection = certificate.context().wrap_socket(connection, server_side=True)
        if first:
            connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\noutside\n")


def vpc_of(machine):
    backend = machine.record.ec2_backend
    id = machine.record.vpc_id or backend.get_default_vpc().id
    with LOCK:
        if id not in VPCS:
            VPCS[id] = Vpc(id, backend.get_vpc(id).cidr_block)
        return VPCS[id]


def refresh():
    """After a change of groups."""
    for vpc in list(VPCS.values()):
        vpc.filter()


def start(server):
    global SERVER, PORT, LOOPBACK
    SERVER, PORT, LOOPBACK = server, server.server_port, Loopback()


def leave(machine):
    for vpc in list(VPCS.values()):
        vpc.leave(machine)


def reaches_ssm(machine):
    """By a default route out of its subnet, or by the endpoints of its VPC."""
    backend, vpc = machine.record.ec2_backend, vpc_of(machine).id
    if not groups.reaches_outside(machine) and not groups.reaches_endpoints(machine):
        return False
    services = {endpoint.service_name.rsplit(".", 1)[1] for endpoint in backend.vpc_end_points.values()
                if endpoint.vpc_id == vpc and endpoint.state == "available"}
    if {"ssm", "ssmmessages"} <= services:
        return True
    return vpc == backend.get_default_vpc().id or any(
        route.gateway or route.nat_gateway for table in backend.route_tables.values() if table.vpc_id == vpc
        for route in table.routes if route.destination_cidr_block == "0.0.0.0/0")
