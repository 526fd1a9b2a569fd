"""Servers for tests: a directory over HTTP and HTTPS, and a resolver that knows nobody and writes down who was asked for."""
import functools, http.server, os, socket, ssl, sys, threading

root, resolver_log, metadata = sys.argv[1:4]
files = os.path.join(root, "www")


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass


def serve(address, port, tls):
    handler = functools.partial(Handler, directory=files)
    server = http.server.ThreadingHTTPServer((address, port), handler)
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(root, "server.pem"))
        # In the thread of the connection: a client that says nothing must not keep the others waiting.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


for address in ("203.0.113.10", "10.99.0.10", metadata):
    serve(address, 80, False)
    serve(address, 443, True)
for port, tls in ((8080, False), (8081, False), (8443, True), (22, False)):
    serve("203.0.113.10", port, tls)

resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.bind(("203.0.113.53", 53))


def refuse_all():
    with open(resolver_log, "ab", buffering=0) as log:
        while True:
            query, client = resolver.recvfrom(4096)
            log.write(query + b"\n")
            # Names that nobody answers for: whoever resolves them waits.
            if len(query) > 12 and b"\x04slow" not in query:
                resolver.sendto(query[:2] + b"\x81\x83" + query[4:6] + b"\0\0\0\0\0\0" + query[12:], client)


threading.Thread(target=refuse_all, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
