"""Who serves a request: this server's own API, SSM, EC2 with its faults, or moto."""
import io
import json
import re
import urllib.parse
import uuid

from . import control, faults, firewall, inside, instances, network, run_command
from .state import LOCK, AwsError, count

# moto lacks Canonical's public parameters; the images are of moto's own.
UBUNTU = re.compile(r"/aws/service/canonical/ubuntu/server/24\.04/stable/current/(amd64|arm64)/hvm/ebs-gp3/ami-id")
IMAGES = {"amd64": "ami-1e749f67", "arm64": "ami-08a311a6aaa3cd94a"}
CREDENTIAL = re.compile(r"Credential=([^/]*)/\d+/([^/]+)/(\w+)/")
TOKENS = {}  # (access key, ClientToken) -> (the request, its answer)


class App:
    def __init__(self, moto):
        self.moto = moto

    def __call__(self, env, start):
        request = Request(env, start, self.moto)
        instances.CALLER.key = request.caller
        try:
            return request.serve()
        except AwsError as error:
            return request.refuse(error)


class Request:
    def __init__(self, env, start, moto):
        self.env, self.start, self.moto, self.id = env, start, moto, str(uuid.uuid4())
        self.path, self.target = env.get("PATH_INFO", ""), env.get("HTTP_X_AMZ_TARGET", "")
        self.query = dict(urllib.parse.parse_qsl(env.get("QUERY_STRING", "")))
        signed = CREDENTIAL.search(env.get("HTTP_AUTHORIZATION", ""))
        presigned = CREDENTIAL.search("Credential=" + self.query.get("X-Amz-Credential", "") + "/")
        match = signed or presigned
        self.caller, self.region, self.service = match.groups() if match else (self.query.get("AWSAccessKeyId", ""), "us-east-1", "")

    def serve(self):
        inside.check(self)
        if self.path.startswith("/__emu__/"):
            body = json.loads(self.body() or b"{}")
            return self.reply(200, control.answer(self.path[len("/__emu__/"):], body, self.query), "application/json")
        if self.service == "ec2":
            return self.serve_ec2()
        if self.target.startswith("AmazonSSM."):
            return self.serve_ssm(self.target.split(".", 1)[1])
        if self.target.startswith("Route53Resolver.") and "Firewall" in self.target:
            return self.serve_firewall(self.target.split(".", 1)[1])
        if self.service == "s3" or "X-Amz-Signature" in self.query or "Signature" in self.query:
            return self.serve_s3()
        if self.service:
            name = self.target.split(".")[-1] or urllib.parse.parse_qs(self.peek()).get("Action", [self.env["REQUEST_METHOD"]])[0]
            return self.through(f"{self.service}:{name}")
        return self.moto(self.env, self.start)

    def serve_ec2(self):
        form = urllib.parse.parse_qs(self.peek(), keep_blank_values=True)
        operation = form.get("Action", [""])[0]
        faults.gate("ec2:" + operation, "ec2", self.caller)
        if operation.startswith("Describe") or operation in ("CreateTags", "TerminateInstances"):
            faults.check_visible(form)
        if operation == "RunInstances":
            return self.run_instances(form)
        if operation == "DescribeInstances" and "MaxResults" in form:
            self.shorten(form)
        answer = self.inner("ec2:" + operation)
        if "SecurityGroup" in operation or operation.startswith("Modify"):
            network.refresh()
        return answer

    def shorten(self, form):
        """A page may always be shorter than was asked for."""
        page = faults.knob(self.caller, "page")
        if page:
            body = urllib.parse.urlencode({**form, "MaxResults": [str(page)]}, doseq=True).encode()
            self.env.update({"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))})

    def run_instances(self, form):
        """Idempotent by ClientToken, which moto's is not."""
        key = (self.caller, form.get("ClientToken", [None])[0])
        with LOCK:
            if key in TOKENS:
                if TOKENS[key][0] != form:
                    raise AwsError("IdempotentParameterMismatch", "The client token was used with other parameters")
                return self.reply(200, TOKENS[key][1], "text/xml")
            faults.check_capacity(form, self.caller)
            got = {}
            data = b"".join(self.moto(self.env, lambda status, headers, error=None: got.update(status=status, headers=headers)))
            if not got["status"].startswith("200"):
                self.start(got["status"], got["headers"])
                return [data]
            if key[1]:
                TOKENS[key] = (form, data)
        faults.after("ec2:RunInstances", "ec2", self.caller)
        return self.reply(200, data, "text/xml")

    def serve_ssm(self, operation):
        faults.gate(operation, "ssm", self.caller)
        body = json.loads(self.peek() or "{}")
        if operation in ("GetParameter", "GetParameters"):
            found = self.public_image(operation, body)
            if found:
                return found
        if operation not in run_command.API:
            return self.inner(operation)
        answer = run_command.API[operation](body, self.region, self.caller)
        faults.after(operation, "ssm", self.caller)
        return self.reply(200, answer)

    def serve_firewall(self, operation):
        faults.gate("route53resolver:" + operation, "route53resolver", self.caller)
        with LOCK:
            return self.reply(200, firewall.API[operation](json.loads(self.body() or b"{}"), self.region))

    def public_image(self, operation, body):
        names = [body["Name"]] if operation == "GetParameter" else body["Names"]
        match = UBUNTU.fullmatch(names[0]) if len(names) == 1 else None
        if not match:
            return None
        parameter = {"Name": names[0], "Type": "String", "Value": IMAGES[match[1]], "Version": 1}
        answer = {"Parameter": parameter} if operation == "GetParameter" else {"Parameters": [parameter], "InvalidParameters": []}
        return self.reply(200, answer)

    def serve_s3(self):
        if faults.presigned_expired(self.query, self.caller):
            count(self.caller, "s3:expired")
            raise AwsError("AccessDenied", "Request has expired", 403)
        return self.through("s3:" + self.env["REQUEST_METHOD"])

    def through(self, operation):
        """To moto, past the faults."""
        faults.gate(operation, self.service or "s3", self.caller)
        return self.inner(operation)

    def inner(self, operation):
        if operation not in faults.knob(self.caller, "errors_after"):
            return self.moto(self.env, self.start)
        got = {}
        data = b"".join(self.moto(self.env, lambda status, headers, error=None: got.update(status=status, headers=headers)))
        if got["status"].startswith("2"):
            faults.after(operation, self.service, self.caller)
        self.start(got["status"], got["headers"])
        return [data]

    def body(self):
        return self.env["wsgi.input"].read(int(self.env.get("CONTENT_LENGTH") or 0))

    def peek(self):
        """The body, which moto can read once more."""
        body = self.body()
        self.env["wsgi.input"] = io.BytesIO(body)
        return body.decode()

    def reply(self, status, payload, kind="application/x-amz-json-1.1"):
        data = payload if isinstance(payload, bytes) else json.dumps(payload, default=str).encode()
        self.start(f"{status} X", [("Content-Type", kind), ("Content-Length", str(len(data))), ("x-amzn-RequestId", self.id)])
        return [data]

    def refuse(self, error):
        if self.target:
            return self.reply(error.status, {"__type": error.code, "message": error.message, "Message": error.message})
        inside = f"<Code>{error.code}</Code><Message>{error.message}</Message>"
        if self.service == "ec2":
            text = f"<Response><Errors><Error>{inside}</Error></Errors><RequestID>{self.id}</RequestID></Response>"
        elif self.service in ("s3", ""):
            text = f"<Error>{inside}<RequestId>{self.id}</RequestId></Error>"
        else:
            text = f"<ErrorResponse><Error>{inside}</Error><RequestId>{self.id}</RequestId></ErrorResponse>"
        return self.reply(error.status, b'<?xml version="1.0"?>' + text.encode(), "text/xml")
