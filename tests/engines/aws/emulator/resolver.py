"""Resolvers: the VPC's, and one outside. Every name exists, unless a DNS Firewall rule says otherwise, which binds the VPC's alone;
every question is recorded."""
import socket
import struct
import threading

from . import firewall
from .network import OUTSIDE, record

A, NOERROR, SERVFAIL, NXDOMAIN = 1, 0, 2, 3


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
        verdict = "ALLOW" if is_public else firewall.verdict(vpc.id, name)
        record(machine, "public dns" if is_public else "dns", name=name, verdict=verdict)
        listening.sendto(answer(question, kind, end, verdict), (address, port))


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


def answer(question, kind, end, verdict):
    code = {"NXDOMAIN": NXDOMAIN, "SERVFAIL": SERVFAIL}.get(verdict, NOERROR)
    given = verdict == "ALLOW" and kind == A
    header = question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, int(given), 0, 0)
    body = b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 5, 4) + socket.inet_aton(OUTSIDE) if given else b""
    return header + question[12:end] + body
