"""How long the parts of a stop may take, for all who wait for one another in it.

``job stop`` asks the driver. The ranks save within SAVE_TIMEOUT_S, and the job has END_TIMEOUT_S from there to its end:
each command has COMMAND_GRACE_S to tidy up, and its teardown HURRIED_TEARDOWN_S, then members leave, the driver writes
the last state and ends. ``job stop`` waits for the sum of both.

A signal leaves less time, because its sender does not wait that long: the embedded cluster's Ray kills a driver
RAY_STOP_WAIT_S after it. SIGNAL_SAVE_TIMEOUT_S for the save and the times for the commands leave the driver 10 s of
that to end. A function job that gets Ctrl-C or SIGTERM saves as quickly; its ranks then have END_TIMEOUT_S to leave.
"""

from __future__ import annotations

SAVE_TIMEOUT_S = 60.0
SIGNAL_SAVE_TIMEOUT_S = 40.0
COMMAND_GRACE_S = 5.0
HURRIED_TEARDOWN_S = 5.0
# Where nobody waits for anything but the job itself.
TEARDOWN_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
RAY_STOP_WAIT_S = 60
