"""A peer of socktools: each message is its length as a big-endian u32, and so many bytes. Either side connects; a peer
that is silent for 10 s is dropped.

    socktools.py dial PORT STEP…       connects
    socktools.py listen PORT STEP…     waits to be connected to
    STEP: send:TEXT  sendhex:HEX  (a message)   raw:HEX  (bytes as they are)   half  (close our side)
          recv  (a message)   end  (the other side has ended, or dropped us)   again  (wait for the next connection)

Prints one line of JSON for each recv and end, with the seconds since the step before.
"""

import json
import socket
import struct
import sys
import time

SILENCE = 10
TEST_TIMEOUT = 30


class Peer:
    def __init__(self, connection):
        self.connection = connection
        # Real peers drop whoever is silent for 10 s; a test waits a little longer, to see the other side do it.
        connection.settimeout(TEST_TIMEOUT)

    def send(self, message):
        self.connection.sendall(struct.pack(">I", len(message)) + message)

    def read(self, count):
        data = b""
        while len(data) < count:
            part = self.connection.recv(count - len(data))
            if not part:
                raise EOFError(f"ended after {data!r}")
            data += part
        return data

    def receive(self):
        (length,) = struct.unpack(">I", self.read(4))
        return self.read(length)


def connections(role, port):
    if role == "dial":
        yield Peer(socket.create_connection(("127.0.0.1", port), SILENCE))
        return
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        listener.settimeout(TEST_TIMEOUT)
        say({"listening": port}, 0)
        while True:
            yield Peer(listener.accept()[0])


def say(what, started):
    what["seconds"] = time.monotonic() - started if started else 0
    print(json.dumps(what), flush=True)


def main():
    role, port, *steps = sys.argv[1:]
    peers = connections(role, int(port))
    peer = next(peers)
    for step in steps:
        started = time.monotonic()
        word, _, text = step.partition(":")
        if word == "send":
            peer.send(text.encode())
        elif word == "sendhex":
            peer.send(bytes.fromhex(text))
        elif word == "raw":
            peer.connection.sendall(bytes.fromhex(text))
        elif word == "half":
            peer.connection.shutdown(socket.SHUT_WR)
        elif word == "recv":
            say({"message": peer.receive().decode()}, started)
        elif word == "end":
            try:
                rest = peer.connection.recv(1)
            except ConnectionResetError:
                rest = b""
            say({"ended": rest == b""}, started)
        elif word == "again":
            peer.connection.close()
            peer = next(peers)
            say({"connected": True}, started)
        else:
            raise ValueError(step)


main()
