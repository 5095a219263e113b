"""Code that makes a Python process one of a system without what only Linux has."""

from __future__ import annotations

# What macOS does not have, as Python's documentation says. There is no /proc to open or to list either.
WITHOUT_LINUX = """
import ctypes, fcntl, os, select, signal, socket, sys

for module, names in {
    os: "sched_getaffinity sched_setaffinity pidfd_open memfd_create copy_file_range splice eventfd posix_fadvise "
    "posix_fallocate fdatasync getxattr setxattr listxattr removexattr getrandom setresuid setresgid unshare setns "
    "waitid O_TMPFILE O_DIRECT O_PATH P_PIDFD",
    select: "epoll",
    signal: "pidfd_send_signal sigtimedwait sigwaitinfo",
    fcntl: "F_OFD_SETLK F_OFD_SETLKW F_OFD_GETLK F_SETPIPE_SZ F_GETPIPE_SZ F_ADD_SEALS F_NOTIFY",
    socket: "AF_NETLINK AF_VSOCK SO_PEERCRED SOCK_CLOEXEC SO_BINDTODEVICE",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

def refuse(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])
    if event == "ctypes.dlsym" and arguments[1] in ("prctl", "unshare", "setns", "inotify_init1", "sched_setaffinity"):
        raise AttributeError(arguments[1])

sys.addaudithook(refuse)
"""
