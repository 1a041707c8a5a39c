#!/usr/bin/env python3
"""A drone as clever-show's own client behaves on the wire, with Python's standard library only.

It connects to a server, or hears from its UDP announcement where that is; answers what it is asked, takes actions and
files, serves files, and sends telemetry. What happens is written to standard output, one JSON object a line.

SIGUSR1 drops the connection and stays away; SIGUSR2 comes back.
"""

import argparse
import json
import os
import select
import signal
import socket
import struct
import sys
import time

REQUIRED = ("byteorder", "content-type", "content-encoding", "content-length", "message-type")
CONNECT_SECONDS = 2.0
PAUSE_SECONDS = float(os.environ.get("CLEVER_DRONE_PAUSE", "2"))
ATTEMPTS = 3
DATAGRAM_BYTES = 1024


def tell(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


class Reset(Exception):
    """The stream cannot go on: the connection is reset."""


def frame(header, content):
    whole = {
        "byteorder": sys.byteorder,
        "content-type": "json",
        "content-encoding": "utf-8",
        "content-length": len(content),
    }
    whole.update(header)
    head = json.dumps(whole).encode("utf-8")
    return struct.pack(">H", len(head)) + head + content


def json_frame(header, value, encoding="utf-8"):
    return frame({"content-encoding": encoding, **header}, json.dumps(value).encode(encoding))


def take_frame(inbox):
    """The first whole frame: its header, its content and what is left; or None."""
    if len(inbox) < 2:
        return None
    (length,) = struct.unpack(">H", inbox[:2])
    if len(inbox) < 2 + length:
        return None
    header = json.loads(inbox[2 : 2 + length].decode("utf-8"))
    for key in REQUIRED:
        if key not in header:
            raise Reset("no " + key)
    end = 2 + length + header["content-length"]
    if len(inbox) < end:
        return None
    return header, inbox[2 + length : end], inbox[end:]


def read_announcement(datagram):
    found = take_frame(datagram)
    if found is None:
        return None
    header, content, _ = found
    if header.get("action") != "server_ip":
        return None
    kwargs = json.loads(content.decode(header["content-encoding"]))["kwargs"]
    for key in ("host", "port", "id", "start_time"):
        if not isinstance(kwargs[key], str):
            raise Reset("an announcement whose %s is no text" % key)
    return kwargs


class Drone:
    def __init__(self, options):
        self.options = options
        self.socket = None
        self.inbox = b""
        self.away = False
        self.due = 0.0
        self.connections = 0

    def values(self, name, kwargs):
        """The answer to a question, or nothing: unknown ones get no reply."""
        config = os.path.join(self.options.dir, "config.json")
        if name == "config":
            with open(config, encoding="utf-8") as file:
                return {"config": json.load(file), "spec": bool(kwargs.get("send_configspec"))}
        known = {
            "id": self.options.id,
            "time": time.time(),
            "telemetry": self.telemetry(),
            "selfcheck": "OK",
            "clover_dir": os.path.join(self.options.dir, "clover"),
            "batt_voltage": 12.1,
            "position": [1.0, 2.0, 3.0, 0.0, "aruco_map"],
            "anim_id": "anim-7",
            "not_a_number": float("nan"),
        }
        return known[name]

    def telemetry(self):
        return {
            "battery": [12.2, 0.98],
            "armed": False,
            "fcu_status": "STANDBY",
            "start_position": [float("nan"), 0.0, float("inf")],
            "time_delta": time.time(),
        }

    def send(self, data):
        self.socket.setblocking(True)
        self.socket.sendall(data)

    def send_telemetry(self):
        content = {"args": [], "kwargs": {"value": self.telemetry()}}
        header = {"message-type": "message", "action": "telemetry"}
        self.send(json_frame(header, content, self.options.encoding))

    def answer(self, header, content):
        name, number = content["requested_value"], content["request_id"]
        if not number.isdigit():
            raise Reset("a request_id that is no digits")
        kwargs = content.get("kwargs") or {}
        tell("request", name=name, id=number, kwargs=kwargs)
        if name in self.options.deaf or (name in self.options.deaf_once and self.connections == 1):
            return
        about = {"message-type": "response", "requested_value": name, "request_id": number}
        if name == "filetransfer":
            try:
                with open(kwargs["filepath"], "rb") as file:
                    data = file.read()
            except OSError as error:
                tell("no file", error=str(error))
                return
            self.send(frame({"content-type": "binary", **about}, data))
            return
        try:
            value = self.values(name, kwargs)
        except KeyError:
            tell("unknown request", name=name)
            return
        self.send(json_frame(about, {"value": value}, self.options.encoding))
        if name == "id" and self.options.garbage:
            self.send(self.options.garbage.encode("latin-1").decode("unicode_escape").encode("latin-1"))
        if name == "id" and self.options.frozen:
            tell("frozen")
            while True:
                time.sleep(1)

    def take(self, header, content):
        kind = header["message-type"]
        if header["content-type"] == "binary":
            if kind == "message" and header.get("action") == "filetransfer":
                path = header["filepath"]
                with open(path, "wb") as file:
                    file.write(content)
                tell("file", path=path, size=len(content))
            return
        value = json.loads(content.decode(header["content-encoding"]))
        if value is None:
            tell("null", header=header)
            return
        if kind == "request":
            self.answer(header, value)
        elif kind == "message":
            action, kwargs = header["action"], value["kwargs"]
            if action == "config":
                with open(os.path.join(self.options.dir, "config.json"), "w", encoding="utf-8") as file:
                    json.dump(kwargs["config"], file)
            tell("action", action=action, args=value["args"], kwargs=kwargs)

    def connect(self, host, port):
        made = socket.create_connection((host, port), CONNECT_SECONDS)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.inbox = made, b""
        self.connections += 1
        tell("connected", host=host, port=port, local=made.getsockname()[1])

    def find(self):
        """Three attempts, then the announcement."""
        attempts = 0
        while self.socket is None and not self.away:
            if self.options.server and attempts < ATTEMPTS:
                host, port = self.options.server.rsplit(":", 1)
                try:
                    self.connect(host, int(port))
                    return
                except OSError as error:
                    attempts += 1
                    tell("no server", error=str(error))
                    wait(PAUSE_SECONDS, self)
                    continue
            self.listen()
            attempts = 0

    def listen(self):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        udp.bind(("", self.options.udp_port))
        udp.settimeout(0.2)
        tell("listening", port=self.options.udp_port)
        while not self.away:
            try:
                datagram, sender = udp.recvfrom(DATAGRAM_BYTES)
            except socket.timeout:
                continue
            kwargs = read_announcement(datagram)
            if kwargs is not None:
                tell("announced", sender=sender[0], bytes=len(datagram), **kwargs)
                self.options.server = "%s:%s" % (kwargs["host"], kwargs["port"])
                break
        udp.close()

    def lose(self, why):
        if self.socket is not None:
            self.socket.close()
            self.socket = None
            tell("lost", why=why)

    def run(self):
        while True:
            if self.away:
                self.lose("away")
                wait(0.05, None)
                continue
            if self.socket is None:
                self.find()
                continue
            try:
                self.turn()
            except (OSError, Reset, ValueError) as error:
                self.lose(str(error))
                wait(PAUSE_SECONDS, self)

    def turn(self):
        pause = 0.2
        if self.options.telemetry:
            pause = min(pause, max(0.0, self.due - time.monotonic()))
        ready, _, _ = select.select([self.socket], [], [], pause)
        if ready:
            data = self.socket.recv(65536)
            if not data:
                raise OSError("closed by the server")
            self.inbox += data
            while True:
                found = take_frame(self.inbox)
                if found is None:
                    break
                header, content, self.inbox = found
                self.take(header, content)
        if self.options.telemetry and time.monotonic() >= self.due:
            self.due = time.monotonic() + self.options.telemetry
            self.send_telemetry()


def wait(seconds, drone):
    until = time.monotonic() + seconds
    while time.monotonic() < until and not (drone is not None and drone.away):
        time.sleep(0.02)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", default="clever-1")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--server", default="")
    parser.add_argument("--udp-port", type=int, default=8181)
    parser.add_argument("--telemetry", type=float, default=0.0)
    parser.add_argument("--encoding", default="utf-8")
    parser.add_argument("--deaf", action="append", default=[])
    parser.add_argument("--deaf-once", action="append", default=[])
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--garbage", default="")
    options = parser.parse_args()
    os.makedirs(os.path.join(options.dir, "clover"), exist_ok=True)
    config = os.path.join(options.dir, "config.json")
    if not os.path.exists(config):
        with open(config, "w", encoding="utf-8") as file:
            json.dump({"SERVER": {"port": 25000}}, file)
    drone = Drone(options)

    def away(_number, _frame):
        drone.away = True

    def back(_number, _frame):
        drone.away = False

    signal.signal(signal.SIGUSR1, away)
    signal.signal(signal.SIGUSR2, back)
    try:
        drone.run()
    except KeyboardInterrupt:
        pass


main()
