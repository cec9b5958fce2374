"""System calls that programs in the sandbox may not make; the door to libseccomp."""

import errno
import fcntl
import importlib
import os
from functools import lru_cache
from typing import Any

DENIED = (
    "_sysctl", "acct", "add_key", "adjtimex", "bpf", "clock_adjtime", "clock_settime",
    "create_module", "delete_module", "fanotify_init", "finit_module", "fsconfig", "fsmount",
    "fsopen", "fspick", "get_kernel_syms", "init_module", "io_uring_enter", "io_uring_register",
    "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
    "lookup_dcookie", "mbind", "migrate_pages", "mount", "mount_setattr", "move_mount",
    "move_pages", "mq_open", "msgget", "name_to_handle_at", "nfsservctl", "open_by_handle_at",
    "open_tree", "perf_event_open", "personality", "pidfd_getfd", "pivot_root",
    "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace", "query_module",
    "quotactl", "quotactl_fd", "reboot", "request_key", "semget", "set_mempolicy",
    "setdomainname", "sethostname", "setns", "settimeofday", "shmget", "swapoff", "swapon",
    "syslog", "umount", "umount2", "unshare", "uselib", "userfaultfd", "ustat", "vhangup",
)  # fmt: skip
"""Refused with EPERM: tracing, mounting, keys, modules, namespaces, and memory that is charged to
no process."""
UNKNOWN = ("clone3", "memfd_create", "memfd_secret")
"""Refused with ENOSYS, so that libraries fall back to calls that the filter can judge."""
NAMESPACES = (0x80, *(1 << bit for bit in (17, 25, 26, 27, 28, 29, 30)))  # CLONE_NEW...
SOCKETS_FROM, SOCKETS_TO = 3, 9  # AF_AX25 ... AF_KEY's neighbours: between INET (2) and INET6 (10)
TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into the terminal of the parent


def sealed_file(name: str, content: bytes) -> int:
    """An open descriptor, at offset 0, of an anonymous file that nobody can change any more."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@lru_cache(maxsize=1)
def seccomp_program() -> bytes:
    """The filter as BPF for `bwrap --seccomp`; empty where libseccomp is missing."""
    try:
        library: Any = importlib.import_module("pyseccomp")
    except (ImportError, OSError, RuntimeError):
        return b""
    rules = library.SyscallFilter(library.ALLOW)  # foreign architectures are killed by default
    refuse, unknown = library.ERRNO(errno.EPERM), library.ERRNO(errno.ENOSYS)
    for action, names in ((refuse, DENIED), (unknown, UNKNOWN)):
        for name in names:
            _add(library, rules, action, name)
    for flag in NAMESPACES:
        _add(library, rules, refuse, "clone", library.Arg(0, library.MASKED_EQ, flag, flag))
    for family in range(SOCKETS_FROM, SOCKETS_TO + 1):
        _add(library, rules, refuse, "socket", library.Arg(0, library.EQ, family))
    _add(library, rules, refuse, "socket", library.Arg(0, library.GT, 10))
    for request in TERMINAL_INPUT:
        same = library.Arg(1, library.MASKED_EQ, 0xFFFFFFFF, request)
        _add(library, rules, refuse, "ioctl", same)
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with open(descriptor, "rb") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _add(library: Any, rules: Any, action: int, name: str, *arguments: Any) -> None:
    try:
        number = library.resolve_syscall(library.Arch.NATIVE, name)
    except (ValueError, OSError):  # unknown to this libseccomp
        return
    if number != -1:
        rules.add_rule(action, number, *arguments)
