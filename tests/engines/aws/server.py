#!/usr/bin/env python3
"""The server: `server.py --port 5055 --image DIRECTORY`. See README.md."""
import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile

from emulator import bucket_policy, firewall, groups, instances, machine, network, roles, state, updates
from emulator.app import App


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5055)
    parser.add_argument("--image", default="/", help="the directory that every machine's root lies over")
    parser.add_argument("--dir", help="where the machines' disks are (default: a temporary directory)")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=JSON")
    return parser.parse_args()


def set_knobs(pairs):
    for pair in pairs:
        name, value = pair.split("=", 1)
        if name not in state.KNOBS:
            sys.exit(f"unknown knob {name}; there are {', '.join(state.KNOBS)}")
        state.KNOBS[name] = json.loads(value)


def end(*_):
    for each in list(state.INSTANCES.values()):
        each.end_processes()
    shutil.rmtree(machine.BASE, ignore_errors=True)
    os._exit(0)


def main():
    options = arguments()
    set_knobs(options.set)
    machine.IMAGE, machine.BASE = options.image, options.dir or tempfile.mkdtemp(prefix="tierbox-aws-")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    instances.hook()
    groups.hook_cloudformation()
    updates.hook_cloudformation()
    roles.hook_cloudformation()
    types = firewall.hook_cloudformation() + bucket_policy.hook_cloudformation()  # kept: moto finds living classes
    MotoRequestHandler.protocol_version = "HTTP/1.1"  # connections are kept, as AWS does
    app = App(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", options.port, app, threaded=True, request_handler=MotoRequestHandler)
    network.start(server)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    print(f"serving http://127.0.0.1:{server.server_port}, disks in {machine.BASE}, {len(types)} more types of resources", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
