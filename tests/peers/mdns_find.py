"""Looks for services by multicast DNS, as programs with a Zeroconf library do:

    mdns_find.py ADDRESS SERVICE      ADDRESS is this host's; SERVICE is as _platypush-tcp._tcp.local

Prints a line of JSON for each instance: its name, port and TXT record; goes on until it is killed.
"""

import json
import select
import socket
import struct
import sys
import time

GROUP, PORT = "224.0.0.251", 5353
PTR, TXT, SRV = 12, 16, 33
ASK_EVERY = 1
LIFETIME = 60


def question(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", 0, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", PTR, 1)


def read_name(packet, at):
    labels, end = [], None
    while packet[at]:
        if packet[at] >= 0xC0:
            (pointer,) = struct.unpack_from(">H", packet, at)
            end = at + 2 if end is None else end
            at = pointer & 0x3FFF
            continue
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    return ".".join(labels), at + 1 if end is None else end


def records(packet):
    questions, *counts = struct.unpack_from(">4H", packet, 4)
    at = 12
    for _ in range(questions):
        at = read_name(packet, at)[1] + 4
    for _ in range(sum(counts)):
        name, at = read_name(packet, at)
        kind, _, _, length = struct.unpack_from(">HHIH", packet, at)
        yield name, kind, at + 10, length
        at += 10 + length


def texts(packet, at, length):
    fields, end = {}, at + length
    while at < end:
        size = packet[at]
        key, _, value = packet[at + 1 : at + 1 + size].decode().partition("=")
        if key:
            fields[key] = value
        at += 1 + size
    return fields


def main():
    address, service = sys.argv[1:]
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", PORT))
    here = socket.inet_aton(address)
    listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + here)
    listener.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
    listener.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    asked, started, found, said = 0, time.monotonic(), {}, set()
    while time.monotonic() - started < LIFETIME:
        if time.monotonic() - asked > ASK_EVERY:
            listener.sendto(question(service), (GROUP, PORT))
            asked = time.monotonic()
        if not select.select([listener], [], [], ASK_EVERY)[0]:
            continue
        packet = listener.recv(9000)
        for name, kind, at, length in records(packet):
            if not name.endswith(service):
                continue
            instance = found.setdefault(name, {})
            if kind == SRV:
                instance["port"] = struct.unpack_from(">H", packet, at + 4)[0]
            elif kind == TXT:
                instance["txt"] = texts(packet, at, length)
        for name, instance in found.items():
            if "port" in instance and "txt" in instance and name not in said:
                said.add(name)
                print(json.dumps({"instance": name, **instance}), flush=True)


main()
