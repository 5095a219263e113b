"""Notes when it starts: ``main.py DIRECTORY``."""

import time

start_unix_s = time.time()

import os  # noqa: E402  The time comes first.
import sys  # noqa: E402

with open(os.path.join(sys.argv[1], os.environ["NODE_RANK"]), "w") as mark:
    mark.write(str(start_unix_s))
