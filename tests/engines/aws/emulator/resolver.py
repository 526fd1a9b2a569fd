"""Resolvers: the VPC's, and one outside. Every name exists, unless a DNS Firewall rule says otherwise, which binds the VPC's alone;
every question is recorded."""
import ipaddress
import re
import struct
import threading

from . import firewall
from .network import OUTSIDE, record

A, CNAME, AAAA, NOERROR, SERVFAIL, NXDOMAIN = 1, 5, 28, 0, 2, 3


def serve(listening, vpc, is_public=False):
    threading.Thread(target=run, args=(listening, vpc, is_public), daemon=True).start()


def run(listening, vpc, is_public):
    while True:
        question, (address, port) = listening.recvfrom(4096)
        machine = vpc.machine_at(address)
        try:
            name, kind, end = parse(question)
        except (IndexError, ValueError, struct.error):
            continue
        verdict = "ALLOW" if is_public else firewall.verdict(vpc.id, chain(name))
        record(machine, "public dns" if is_public else "dns", name=name, verdict=verdict)
        leads = ipaddress.ip_address(leads_to(machine, name))
        listening.sendto(answer(question, kind, end, verdict, chain(name)[1:], leads), (address, port))


def leads_to(machine, name):
    """The outside, unless the machine's caller wants it otherwise."""
    names = machine.knob("names") if machine else {}
    return names.get(name.rstrip("."), OUTSIDE)


def chain(name):
    """A name and what it leads to: buckets' names lead to one of S3's own."""
    bucket = re.fullmatch(r"[a-z0-9.-]+\.s3\.([a-z0-9-]+)\.amazonaws\.com\.", name)
    return [name, f"s3-r-w.{bucket[1]}.amazonaws.com."] if bucket else [name]


def parse(question):
    """(the name, its type, where the question ends)."""
    at, labels = 12, []
    while question[at]:
        length = question[at]
        if length > 63:
            raise ValueError("a pointer in a question")
        labels.append(question[at + 1:at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    kind, _ = struct.unpack("!HH", question[at + 1:at + 5])
    return ".".join(labels).lower() + ".", kind, at + 5


def answer(question, kind, end, verdict, targets, leads):
    code = {"NXDOMAIN": NXDOMAIN, "SERVFAIL": SERVFAIL}.get(verdict, NOERROR)
    wanted = A if leads.version == 4 else AAAA
    given = verdict == "ALLOW" and kind == wanted
    body, owner, at = b"", b"\xc0\x0c", end
    for target in targets if given else []:
        name = b"".join(bytes([len(label)]) + label.encode() for label in target.rstrip(".").split(".")) + b"\0"
        body += owner + struct.pack("!HHIH", CNAME, 1, 5, len(name)) + name
        owner = struct.pack("!H", 0xc000 | (at + len(body) - len(name)))
    if given:
        body += owner + struct.pack("!HHIH", wanted, 1, 5, len(leads.packed)) + leads.packed
    header = question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, int(given) * (1 + len(targets)), 0, 0)
    return header + question[12:end] + body
