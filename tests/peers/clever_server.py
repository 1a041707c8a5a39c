#!/usr/bin/env python3
"""A clever-show server as a drone meets it, with Python's standard library only.

Asks every connection for `id`, and each address's first one for `clover_dir`. What happens is told on standard output,
one JSON object in a line; what to do comes as JSON lines over the control port that the first line names. With --connect
it is the side that dials, and asks nothing by itself.
"""

import argparse
import json
import socket
import struct
import sys
import threading
import time

REQUIRED = ("byteorder", "content-type", "content-encoding", "content-length", "message-type")
TELLING = threading.Lock()


def tell(event, **fields):
    with TELLING:
        print(json.dumps({"event": event, **fields}), flush=True)


def frame(content, **header):
    whole = {
        "byteorder": sys.byteorder,
        "content-type": "json",
        "content-encoding": "utf-8",
        "content-length": len(content),
        **{key.replace("_", "-"): value for key, value in header.items() if not key.startswith("request")},
    }
    for key in ("requested_value", "request_id"):
        if key in header:
            whole[key] = header[key]
    head = json.dumps(whole).encode("utf-8")
    return struct.pack(">H", len(head)) + head + content


class Peer:
    def __init__(self, sock, options):
        self.socket = sock
        self.options = options
        self.sending = threading.Lock()
        self.number = 0
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 3), (socket.TCP_KEEPCNT, 5)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data):
        with self.sending:
            self.socket.sendall(data)

    def request(self, value, args=None, kwargs=None, id=None):
        self.number += 1
        content = {
            "requested_value": value,
            "request_id": id or "%04d" % self.number,
            "args": args,
            "kwargs": kwargs or {},
        }
        encoding = self.options.encoding
        self.send(frame(json.dumps(content).encode(encoding), message_type="request", content_encoding=encoding))

    def action(self, action, args=(), kwargs=None):
        content = json.dumps({"args": list(args), "kwargs": kwargs or {}}).encode("utf-8")
        self.send(frame(content, message_type="message", action=action))

    def push(self, filepath, content):
        header = {"message_type": "message", "action": "filetransfer", "filepath": filepath}
        self.send(frame(content, content_type="binary", **header))

    def respond(self, name, id, value):
        content = json.dumps({"value": value}).encode("utf-8")
        self.send(frame(content, message_type="response", requested_value=name, request_id=id))

    def read(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise EOFError()
            data += more
        return data

    def serve(self):
        try:
            while True:
                (length,) = struct.unpack(">H", self.read(2))
                header = json.loads(self.read(length).decode("utf-8"))
                for key in REQUIRED:
                    if key not in header:
                        raise ValueError("a header without " + key)
                self.take(header, self.read(header["content-length"]))
        except (EOFError, OSError) as why:
            tell("lost", why=str(why))
        except ValueError as why:
            tell("bad", why=str(why))
        self.socket.close()

    def take(self, header, content):
        kind = header["message-type"]
        if header["content-type"] == "binary":
            if kind == "response":
                tell("file", id=header["request_id"], hex=content.hex())
            else:
                tell("pushed", filepath=header["filepath"], hex=content.hex())
            return
        content = json.loads(content.decode(header["content-encoding"]))
        if kind == "response":
            name = header["requested_value"]
            tell("response", name=name, id=header["request_id"], value=content["value"])
        elif kind == "request":
            name, id = content["requested_value"], content["request_id"]
            tell("request", name=name, id=id, args=content["args"], kwargs=content["kwargs"])
            if name == "filetransfer" and name in self.options.answers:
                data = bytes.fromhex(self.options.answers[name])
                header = {"requested_value": name, "request_id": id}
                self.send(frame(data, message_type="response", content_type="binary", **header))
            elif name in self.options.answers:
                self.respond(name, id, self.options.answers[name])
        else:
            tell("action", action=header["action"], args=content["args"], kwargs=content["kwargs"])


class Server:
    def __init__(self, options):
        self.options = options
        self.peers = []
        self.known = set()

    def take(self, sock, addr):
        peer = Peer(sock, self.options)
        self.peers.append(peer)
        tell("connected", addr=addr[0], port=addr[1])
        threading.Thread(target=peer.serve, daemon=True).start()
        return peer

    def accept(self, listener):
        while True:
            sock, addr = listener.accept()
            peer = self.take(sock, addr)
            peer.request("id", args=[])
            if addr[0] not in self.known:
                self.known.add(addr[0])
                peer.request("clover_dir", args=[])

    def announce(self, udp_port, port):
        content = {"host": "127.0.0.1", "port": str(port), "id": "0042", "start_time": str(time.time())}
        content = json.dumps({"args": [], "kwargs": content}).encode("utf-8")
        datagram = frame(content, message_type="message", action="server_ip")
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        while True:
            for data in (b"nonsense", b"\x00" * 2000, datagram):
                sender.sendto(data, ("127.0.0.1", udp_port))
            time.sleep(0.1)

    def order(self, order):
        do, peer = order.pop("do"), self.peers[-1]
        if do == "request":
            peer.request(**order)
        elif do == "action":
            peer.action(**order)
        elif do == "push":
            peer.push(order["filepath"], bytes.fromhex(order["hex"]))
        elif do == "raw":
            peer.send(bytes.fromhex(order["hex"]))
        elif do == "drop":
            for peer in self.peers:
                peer.socket.shutdown(socket.SHUT_RDWR)
        else:
            raise ValueError("what is " + do)

    def control(self, listener):
        while True:
            sock, _ = listener.accept()
            with sock.makefile("rw", encoding="utf-8") as lines:
                for line in lines:
                    try:
                        self.order(json.loads(line))
                    except OSError as error:
                        tell("not sent", why=str(error))
                    lines.write("ok\n")
                    lines.flush()


def listen(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--connect", default="")
    parser.add_argument("--announce", type=int, default=0)
    parser.add_argument("--encoding", default="utf-8")
    parser.add_argument("--answers", type=json.loads, default={})
    options = parser.parse_args()
    server = Server(options)
    control = listen(0)
    threading.Thread(target=server.control, args=(control,), daemon=True).start()
    if options.connect:
        host, port = options.connect.rsplit(":", 1)
        tell("ready", control=control.getsockname()[1], port=int(port))
        dialled = socket.create_connection((host, int(port)), 2.0)
        dialled.settimeout(None)
        server.take(dialled, (host, int(port)))
        threading.Event().wait()
    listener = listen(options.port)
    port = listener.getsockname()[1]
    tell("ready", control=control.getsockname()[1], port=port)
    if options.announce:
        threading.Thread(target=server.announce, args=(options.announce, port), daemon=True).start()
    server.accept(listener)


main()
