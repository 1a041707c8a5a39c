"""A client of a Knut server, as its documentation describes the protocol, in Python's standard library alone.

UTF-8 JSON messages {"apiId", "msgId", "msg"}, each ended by one NUL, both ways; a lone NUL is the server's heartbeat.

    knut_client.py PORT SCENARIO [WORD...]

Each scenario ends with status 0 if all was as documented; `listen` goes on for good and prints what comes.
"""

import json
import socket
import sys
import threading
import time

TEST_TIMEOUT = 20.0
OURS = 21335


class Client:
    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", int(port)), timeout=TEST_TIMEOUT)
        self.buffer = b""

    def send(self, api, msg_id, msg):
        self.raw(json.dumps({"apiId": api, "msgId": msg_id, "msg": msg}).encode() + b"\0")

    def raw(self, data):
        self.sock.sendall(data)

    def item(self):
        """The next message, or None for a heartbeat."""
        while b"\0" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError("the server closed the connection")
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text.decode("utf-8")) if text else None

    def message(self):
        """The next message that is no heartbeat and no push."""
        while True:
            item = self.item()
            if item is not None and (item["apiId"], item["msgId"]) != (1, 0x0101):
                return item

    def ask(self, api, msg_id, msg):
        self.send(api, msg_id, msg)
        return self.message()

    def closed_within(self, seconds):
        """Whether the server closes the connection, whatever it says before."""
        self.sock.settimeout(seconds)
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                if not self.sock.recv(65536):
                    return True
        except ConnectionError:
            return True
        except TimeoutError:
            pass
        return False


def check(condition, what):
    if not condition:
        raise SystemExit(f"not as documented: {what}")


def documented(port):
    """The documented line, byte for byte, as `echo -ne ... | netcat` sends it."""
    client = Client(port)
    client.raw(b'{"apiId": 1, "msgId": 2, "msg": {}}\0')
    client.sock.shutdown(socket.SHUT_WR)
    answer = client.item()
    while answer is None:
        answer = client.item()
    check(list(answer) == ["apiId", "msgId", "msg"], answer)
    check((answer["apiId"], answer["msgId"]) == (1, 258), answer)
    for name, status in answer["msg"].items():
        check(set(status) == {"location", "unit", "condition", "temperature"}, status)
        check(status["unit"] == "\u00b0C" and len(status["condition"]) == 1, status)
        check(isinstance(status["temperature"], float), status)
        check(isinstance(status["location"], str) and name, status)
    print(json.dumps(answer["msg"]))
    try:
        while True:
            check(client.item() is None, "only heartbeats follow")
    except EOFError:
        pass


def heartbeat(port):
    """One each second, from the server, by itself."""
    client = Client(port)
    client.send(1, 2, {})
    client.message()
    times = []
    while len(times) < 4:
        if client.item() is None:
            times.append(time.monotonic())
    gaps = [late - early for early, late in zip(times, times[1:])]
    check(all(0.5 < gap < 2.5 for gap in gaps), gaps)


def listen(port):
    client = Client(port)
    client.raw(b"\0")
    print(json.dumps({"listening": True}))
    client.sock.settimeout(None)
    while True:
        item = client.item()
        print(json.dumps(item if item is not None else {"heartbeat": True}))


def status(port, name, temperature):
    client = Client(port)
    client.send(1, 1, {"id": name})
    while True:
        answer = client.item()
        # A push looks the same: the answer names who was asked for.
        if answer is not None and list(answer["msg"]) == [name]:
            break
    check((answer["apiId"], answer["msgId"]) == (1, 0x0101), answer)
    check(answer["msg"][name]["temperature"] == float(temperature), answer)
    check(answer["msg"][name]["location"] in (name, ""), answer)


def history(port, name, *temperatures):
    wanted = [float(temperature) for temperature in temperatures]
    end = time.monotonic() + TEST_TIMEOUT
    while True:
        client = Client(port)
        answer = client.ask(1, 3, {"id": name})
        check((answer["apiId"], answer["msgId"]) == (1, 0x0103), answer)
        body = answer["msg"]
        check(body["id"] == name and len(body["temperature"]) == len(body["time"]), body)
        check(body["time"] == sorted(body["time"]), body)
        check(all(abs(at - time.time()) < 600 for at in body["time"]), body)
        # Each as often as it was measured.
        seen = [t for i, t in enumerate(body["temperature"]) if i == 0 or body["temperature"][i - 1] != t]
        if seen[-len(wanted):] == wanted:
            return
        check(time.monotonic() < end, body)


def manners(port):
    """What is unknown comes back, what is not a message is skipped, what asks for no answer gets none."""
    client = Client(port)
    for api, msg_id, msg in [(99, 7, {"a": [1, {"b": "\u00e9\u0000"}]}), (-1, 1, None), (2, 1, "text"), (1, 77, {})]:
        answer = client.ask(api, msg_id, msg)
        check(answer == {"apiId": api, "msgId": msg_id, "msg": msg}, answer)
    for bad in [b"nonsense", b"{", b"\xff\xfe", b"[]", b"{}", b'{"apiId": "1", "msgId": 2, "msg": {}}', b"[" * 100]:
        client.raw(bad + b"\0")
    for api in [1, 99, OURS]:
        client.send(api, 0, {"selector": "all", "action": "echo", "args": {"word": "silent"}})
    client.raw(b"\n\0 \0")
    # In pieces, and several at once.
    text = json.dumps({"apiId": 98, "msgId": 5, "msg": {"x": "\u00fc"}}, ensure_ascii=False).encode() + b"\0"
    for at in range(len(text)):
        client.raw(text[at:at + 1])
    client.raw(text * 3)
    for _ in range(4):
        check(client.message() == {"apiId": 98, "msgId": 5, "msg": {"x": "\u00fc"}}, "the next valid message")


def nodes(port, selector):
    answer = Client(port).ask(OURS, 1, {"selector": selector})
    check((answer["apiId"], answer["msgId"]) == (OURS, 0x0101), answer)
    print(json.dumps(answer["msg"]))


def call(port, body):
    answer = Client(port).ask(OURS, 2, json.loads(body))
    check((answer["apiId"], answer["msgId"]) == (OURS, 0x0102), answer)
    print(json.dumps(answer["msg"]))


def misbehave(port, number, told):
    """One of a crowd: silence, trickle, garbage, flood, or never reading. Ends when the server has had enough."""
    client = Client(port)
    told.wait()
    kind = number % 5
    if kind == 0:
        return client.closed_within(TEST_TIMEOUT)
    if kind == 1:
        end = time.monotonic() + TEST_TIMEOUT
        try:
            while time.monotonic() < end:
                client.raw(b"{")
                time.sleep(0.5)
        except OSError:
            return True
        return False
    try:
        if kind == 2:
            for _ in range(200):
                client.raw(bytes(range(256)) * 4)
        elif kind == 3:
            client.sock.settimeout(3)
            for _ in range(5000):
                client.raw(b'{"apiId": 1, "msgId": 2, "msg": {}}\0' * 20)
        else:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.sock.settimeout(3)
            for _ in range(5000):
                client.raw(b'{"apiId": 97, "msgId": 2, "msg": "%s"}\0' % (b"x" * 900))
    except OSError:
        pass
    return True


def crowd(port, size):
    count = int(size)
    told, results = threading.Event(), [None] * count
    here = threading.Barrier(count + 1)

    def one(number):
        here.wait()
        results[number] = misbehave(port, number, told)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    here.wait()
    told.set()
    print(json.dumps({"crowd": count}))
    for thread in threads:
        thread.join()
    check(all(results), results)


def all_places(port, size):
    """So many at once are served, and one more is not."""
    clients = []
    end = time.monotonic() + TEST_TIMEOUT
    while len(clients) < int(size):
        # Those that have gone give their places back when the server has seen it.
        client = Client(port)
        try:
            client.ask(99, 1, {})
            clients.append(client)
        except (EOFError, ConnectionError):
            check(time.monotonic() < end, f"{len(clients)} places")
            time.sleep(0.05)
    check(Client(port).closed_within(5), "one too many is closed at once")


if __name__ == "__main__":
    globals()[sys.argv[2]](sys.argv[1], *sys.argv[3:])
