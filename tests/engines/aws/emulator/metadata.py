"""The instance metadata service: IMDSv2 tokens with their hop limit, v1 where the launch allows it, and the role's credentials."""
import datetime
import http.server
import json
import secrets
import socket
import threading

from . import roles
from .machine import user_data
from .network import record
from .state import iso, now

TOKENS = {}  # token -> (instance id, when it ends)


def serve(listening, vpc):
    server = Server(None, Handler, bind_and_activate=False)
    server.socket.close()
    server.socket, server.vpc = listening, vpc
    threading.Thread(target=server.serve_forever, daemon=True).start()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def setup(self):
        super().setup()
        self.machine = self.server.vpc.machine_at(self.client_address[0])

    def options(self):
        return self.machine.record.metadata_options

    def do_PUT(self):
        if not self.usable():
            return
        seconds = int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") or 0)
        if self.path != "/latest/api/token" or not 1 <= seconds <= 21600:
            return self.answer(400)
        # Only this answer is bound to the hop limit: whoever is further away never learns a token.
        self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, self.options().http_put_response_hop_limit)
        token = secrets.token_urlsafe(40)
        TOKENS[token] = (self.machine.id, now() + seconds)
        record(self.machine, "metadata", path=self.path)
        self.answer(200, token)

    def do_GET(self):
        if not self.usable():
            return
        token = self.headers.get("X-aws-ec2-metadata-token")
        owner, ends = TOKENS.get(token, (None, 0))
        valid = owner == self.machine.id and now() < ends
        if not valid and (token or self.options().http_tokens == "required"):
            return self.answer(401)
        record(self.machine, "metadata", path=self.path)
        text = self.look_up(self.path.split("?")[0].strip("/"))
        self.answer(404 if text is None else 200, text or "")

    def usable(self):
        if self.machine is None:
            self.close_connection = True
            return False
        if self.options().http_endpoint == "disabled":
            self.answer(403)
            return False
        return True

    def look_up(self, path):
        path = path.removeprefix("latest/")
        machine = self.machine
        facts = {
            "meta-data/instance-id": machine.id, "meta-data/ami-id": machine.record.image_id,
            "meta-data/instance-type": machine.record.instance_type, "meta-data/local-ipv4": machine.record.private_ip,
            "meta-data/placement/region": machine.region, "meta-data/hostname": machine.id,
            "user-data": user_data(machine.record) or None,
            "dynamic/instance-identity/document": json.dumps(identity(machine)),
        }
        role = roles.of(machine)
        if role:
            facts["meta-data/iam/security-credentials"] = role.name
            facts[f"meta-data/iam/security-credentials/{role.name}"] = json.dumps(credentials(machine))
        return facts.get(path)

    def answer(self, status, text=""):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def identity(machine):
    return {"instanceId": machine.id, "region": machine.region, "accountId": roles.ACCOUNT, "imageId": machine.record.image_id,
            "instanceType": machine.record.instance_type, "architecture": machine.record.architecture}


def credentials(machine):
    """Keys that nothing else knows: where one turns up, a test knows whence it came."""
    key, secret, token = roles.keys(machine)
    ends = datetime.timedelta(hours=6).total_seconds() + now()
    return {"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": iso(now()), "Expiration": iso(ends),
            "AccessKeyId": key, "SecretAccessKey": secret, "Token": token}
