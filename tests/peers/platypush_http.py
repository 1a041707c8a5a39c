"""A client of Platypush's HTTP backend, with Python's standard library:

    platypush_http.py curl 'curl -XPOST -H … -d … URL'   does what that line of curl does
    platypush_http.py events URL TOKEN [COUNT]            reads events over a WebSocket (RFC 6455), one line each
    platypush_http.py events-slowly URL TOKEN FILE        the same, but reads nothing before FILE is there
    platypush_http.py tls HOST PORT CERTIFICATE PATH [CERTIFICATE KEY]
                      GET over TLS, trusting that certificate only, and showing one of its own if there is one

Prints lines of JSON: {"status", "headers", "body"} of an answer, {"event"} or {"close": [code, reason]} of a WebSocket.
"""

import base64
import hashlib
import http.client
import json
import os
import shlex
import socket
import ssl
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

TIMEOUT = 30


def tell(**what):
    print(json.dumps(what), flush=True)


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args):
        return None


def curl(line):
    words = shlex.split(line)
    assert words.pop(0) == "curl"
    method, url, data, headers = None, None, None, {}
    while words:
        word = words.pop(0)
        if word in ("-s", "-i"):
            continue
        if word.startswith("-X"):
            method = word[2:] or words.pop(0)
        elif word in ("-H", "--header"):
            name, value = words.pop(0).split(":", 1)
            headers[name] = value.strip()
        elif word in ("-d", "--data"):
            data = words.pop(0).encode()
        elif word in ("-u", "--user"):
            shown = base64.b64encode(words.pop(0).encode()).decode()
            headers["Authorization"] = "Basic " + shown
        else:
            assert not word.startswith("-"), word
            url = word
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        answer = urllib.request.build_opener(Stay).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        answer = error
    show(answer.status, answer.headers, answer.read())


def show(status, headers, body):
    text = body.decode(errors="replace")
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    tell(status=status, headers={name.lower(): value for name, value in headers.items()}, body=body)


def tls(host, port, certificate, path, *own):
    context = ssl.create_default_context(cafile=certificate)
    if own:
        context.load_cert_chain(*own)
    connection = http.client.HTTPSConnection(host, int(port), timeout=TIMEOUT, context=context)
    try:
        # In TLS 1.3 a client learns that it is refused when it reads.
        connection.request("GET", path)
        answer = connection.getresponse()
        show(answer.status, answer.headers, answer.read())
    except (ssl.SSLError, ConnectionError) as error:
        tell(refused=repr(error))


class WebSocket:
    """The client's half of RFC 6455, as much as events need."""

    def __init__(self, url, token, receive_bytes=None):
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect((parts.hostname, parts.port))
        key = base64.b64encode(os.urandom(16)).decode()
        head = [
            f"GET {parts.path or '/'} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            f"Authorization: Bearer {token}",
        ]
        self.socket.sendall("\r\n".join([*head, "", ""]).encode())
        self.file = self.socket.makefile("rb")
        status = self.file.readline().decode().strip()
        headers = http.client.parse_headers(self.file)
        self.status = int(status.split()[1])
        if self.status == 101:
            magic = (key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()
            wanted = base64.b64encode(hashlib.sha1(magic).digest()).decode()
            assert headers["Sec-WebSocket-Accept"] == wanted, headers
        else:
            body = self.file.read(int(headers["Content-Length"]))
            show(self.status, headers, body)

    def send(self, opcode, payload):
        assert len(payload) < 126
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    def read(self, count):
        data = self.file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def receive(self):
        """The opcode and the payload of the next whole message; pings are answered."""
        whole, kind = b"", None
        while True:
            first, second = self.read(2)
            assert not second & 0x80, "a server does not mask"
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", self.read(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self.read(8))
            payload = self.read(length)
            opcode = first & 0x0F
            if opcode == 9:
                self.send(10, payload)
                continue
            if opcode == 8:
                return opcode, payload
            if opcode == 10:
                continue
            kind = opcode or kind
            whole += payload
            if first & 0x80:
                return kind, whole


def follow(websocket, count):
    if websocket.status != 101:
        return
    tell(open=True)
    try:
        while count != 0:
            opcode, payload = websocket.receive()
            if opcode == 8:
                (code,) = struct.unpack("!H", payload[:2])
                tell(close=[code, payload[2:].decode()])
                return
            tell(event=json.loads(payload))
            count -= 1
    except (EOFError, ConnectionError) as error:
        tell(ended=repr(error))
        return
    websocket.send(8, struct.pack("!H", 1000))


def main():
    mode, *words = sys.argv[1:]
    if mode == "curl":
        curl(words[0])
    elif mode == "tls":
        tls(*words)
    elif mode == "events":
        url, token, *count = words
        follow(WebSocket(url, token), int(count[0]) if count else -1)
    elif mode == "events-slowly":
        url, token, sign = words
        websocket = WebSocket(url, token, receive_bytes=2048)
        tell(open=True)
        deadline = time.monotonic() + 2 * TIMEOUT
        while not os.path.exists(sign):
            assert time.monotonic() < deadline, f"no {sign}"
            time.sleep(0.02)
        follow(websocket, -1)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
