"""A process that has imported everything and converts in a forked child when told, for tests that kill it.

Each line of standard input is a conversion in JSON; for each, two lines come back: the child's process id, and, when
it has ended, its status as `os.waitpid` gives it.
"""

import json
import os
import sys
import time

import moe_codegen


def slowly(step, total, done):
    return lambda nbytes: time.sleep(0.004)


def convert(task):
    try:
        moe_codegen.upcycle(task["source"], task["out"], progress=slowly, **task["options"])
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(0)


def main():
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            convert(json.loads(line))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
