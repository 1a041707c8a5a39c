"""Runs a program on a terminal of its own and answers its questions:

    terminal.py ANSWER… -- PROGRAM [ARG…]

Each answer is typed once the program has asked (with a colon and a space at the end). Prints {"shown", "status"}.
"""

import json
import os
import pty
import select
import sys
import time

TIMEOUT = 60


def main():
    words = sys.argv[1:]
    split = words.index("--")
    answers, program = words[:split], words[split + 1 :]
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(program[0], program)
    shown, asked, deadline = b"", 0, time.monotonic() + TIMEOUT
    while True:
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(shown)
        try:
            part = os.read(terminal, 4096)
        except OSError:
            part = b""
        if not part:
            break
        shown += part
        if answers and shown.count(b": ", asked) and shown.endswith(b": "):
            asked = len(shown)
            os.write(terminal, answers.pop(0).encode() + b"\n")
    _, status = os.waitpid(child, 0)
    print(json.dumps({"shown": shown.decode(), "status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
