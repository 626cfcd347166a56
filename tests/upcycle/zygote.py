"""A process that has imported everything and converts in a forked child when told, for tests that kill it.

Each line of standard input is a conversion in JSON. What comes back, a line each: the child's process id, each step
as it begins, and, when the child has ended, "status" and what `os.waitpid` gives.
"""

import json
import os
import signal
import sys
import time

import moe_codegen


def slowly(step, total, done):
    print(step, flush=True)
    return lambda nbytes: time.sleep(0.004)


def convert(task):
    try:
        moe_codegen.upcycle(task["source"], task["out"], progress=slowly, **task["options"])
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(0)


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            convert(json.loads(line))
        print(pid, flush=True)
        print("status", os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
