#!/usr/bin/env python3
"""Runs a program in which a seccomp filter refuses system calls, as the sandbox of a container does.

usage: refuse.py CALL=ERRNO[,CALL=ERRNO..] PROGRAM [ARGUMENT..], for example refuse.py ppoll=EPERM,timerfd_create=ENOSYS web

The program replaces this one, so its process has the same number. Exit status 77: no filter can be installed here.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": (0xC000003E, {"epoll_create1": 291, "eventfd2": 290, "poll": 7, "ppoll": 271, "timerfd_create": 283}),
    "aarch64": (0xC00000B7, {"epoll_create1": 20, "eventfd2": 19, "ppoll": 73, "timerfd_create": 85}),
}
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2


def instructions(rules):
    """The filter. The offsets are those of struct seccomp_data: 4 for the architecture, 0 for the number."""
    architecture, numbers = NUMBERS[platform.machine()]
    yield LOAD, 0, 0, 4
    yield JUMP_IF_EQUAL, 1, 0, architecture
    yield RETURN, 0, 0, ALLOW
    yield LOAD, 0, 0, 0
    for call, error in rules:
        yield JUMP_IF_EQUAL, 0, 1, numbers[call]
        yield RETURN, 0, 0, REFUSE | error
    yield RETURN, 0, 0, ALLOW


def refuse(rules):
    """Installs the filter in this process. Programs that it becomes keep it."""
    code = [struct.pack("HBBI", *one) for one in instructions(rules)]
    text = ctypes.create_string_buffer(b"".join(code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(text))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]
    if prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) or prctl(PR_SET_SECCOMP, FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    rules = [rule.split("=") for rule in sys.argv[1].split(",")]
    try:
        refuse([(call, getattr(errno, name)) for call, name in rules])
    except (KeyError, OSError) as error:
        print(f"refuse.py: no seccomp filter: {error!r}", file=sys.stderr)
        sys.exit(77)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
