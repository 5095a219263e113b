"""A cloud in a box: machines that a real ``ray up`` makes, reaches by SSH and ends, on a network that leads nowhere.

A machine is a set of Linux namespaces over a copy-on-write view of this machine's files, with its own sshd. What the
providers' APIs say of it is true: one that is asked for boots, one that is ended loses its power.
"""
