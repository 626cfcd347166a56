"""Converts `sys.argv[1]` to `sys.argv[2]` and prints by how many bytes its own memory grew at most.

Own memory is RssAnon: what the process allocated. Mapped files live in the page cache, which the system takes back.
"""

import json
import re
import sys
import threading
from pathlib import Path

import moe_codegen


def own_bytes():
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main():
    source, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    moe_codegen.upcycle(source, f"{out}-warm-up", dry_run=True, **options)
    before, peak, done = own_bytes(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    moe_codegen.upcycle(source, out, **options)
    done.set()
    watcher.join()
    print(peak - before)


if __name__ == "__main__":
    main()
