"""A client of Platypush's TCP backend, as its documentation has it:

    platypush_tcp.py PORT nc TEXT        echo TEXT | nc localhost PORT: it ends when the other side does
    platypush_tcp.py PORT nc-N TEXT      the same, and it closes its own side at once
    platypush_tcp.py PORT several TEXT…  on one connection, each after the answer to the one before

Prints one line of JSON: what the other side wrote, and how long it took.
"""

import json
import socket
import sys
import time

TIMEOUT = 30


def read_to_end(connection):
    parts = []
    while True:
        part = connection.recv(65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def read_message(connection, decoder, text):
    """One JSON message; there need not be anything after it."""
    while True:
        text = text.lstrip()
        try:
            message, end = decoder.raw_decode(text)
            return message, text[end:]
        except json.JSONDecodeError:
            part = connection.recv(65536)
            if not part:
                raise EOFError(f"the connection ended within {text!r}")
            text += part.decode()


def main():
    port, mode, *texts = sys.argv[1:]
    started = time.monotonic()
    with socket.create_connection(("localhost", int(port)), TIMEOUT) as connection:
        if mode == "several":
            decoder, rest, answers = json.JSONDecoder(), "", []
            for text in texts:
                connection.sendall(text.encode())
                answer, rest = read_message(connection, decoder, rest)
                answers.append(answer)
            result = {"answers": answers}
        else:
            connection.sendall((texts[0] + "\n").encode())
            if mode == "nc-N":
                connection.shutdown(socket.SHUT_WR)
            result = {"printed": read_to_end(connection).decode()}
    result["seconds"] = time.monotonic() - started
    print(json.dumps(result), flush=True)


main()
