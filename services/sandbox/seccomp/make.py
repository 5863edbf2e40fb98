"""Makes the filters of system calls that boxes run under: `uv run --with pyseccomp services/sandbox/seccomp/make.py`.

Needs libseccomp on the machine; what it writes needs nothing, and is committed. Two filters for each kind of machine,
because a call has to pass both: `a` says which calls there are, `b` looks at the low 32 bits of what ioctl is asked,
as the kernel does (a comparison of all 64 in one filter would let the same request through with other high bits).

A call that is not listed answers EPERM, so that a kernel's new calls are closed until somebody has thought about them.
Calls of another kind of machine (32-bit ones, x32) end the process.
"""

import errno
from pathlib import Path

import pyseccomp as seccomp

MACHINES = {"x86_64": seccomp.Arch.X86_64, "aarch64": seccomp.Arch.AARCH64}

FOLDER = Path(__file__).parent.parent / "src/retinue_sandbox/bwrap"

CALLS = (
    "accept accept4 access alarm arch_prctl bind brk capget capset chdir chmod chown clock_getres clock_gettime",
    "clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1",
    "epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat",
    "faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr",
    "flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_waitv futimesat get_mempolicy",
    "get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername",
    "getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid",
    "getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch inotify_init inotify_init1",
    "inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get",
    "ioprio_set kill lchown lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat",
    "madvise membarrier mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect",
    "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap",
    "msync munlock munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal",
    "pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 pselect6",
    "pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg",
    "remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending",
    "rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo",
    "sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam",
    "sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler",
    "sched_yield select sendfile sendmmsg sendmsg sendto set_robust_list",
    "set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid",
    "setresuid setreuid setrlimit setsid setsockopt setuid setxattr shmat shmctl shmdt shmget shutdown",
    "sigaltstack signalfd signalfd4 splice stat statfs statx symlink symlinkat sync_file_range syncfs",
    "sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime",
    "timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat utime",
    "utimensat utimes vfork wait4 waitid write writev",
)
"""What git, compilers, Python, Node and databases in a file use. Not in it, among others: mounts and namespaces, ptrace
and reading other processes' memory, keyrings, bpf, io_uring, perf, userfaultfd, handles of files, kernel modules."""

ABSENT = "clone3 memfd_create msgctl msgget msgrcv msgsnd semctl semget semop semtimedop"
"""Answer as on a kernel that was built without them, and programs do what they do there. The flags of clone3 are in
memory, where no filter can look: libraries then use clone. The others keep memory of the kernel that no limit of a
process counts, and that outlasts whoever has filled it, or is seen in no list of processes. Memory to share is had by
mmap, in /dev/shm, which has a size, and by shmget, which is counted."""

FCHMODAT2 = 452
"""Newer than the libseccomp of most machines, and the same number on all kinds."""

NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
TYPE_MASK = 0xF
UNIX_TYPES = STREAM, DGRAM, _ = (1, 2, 5)
PROTOCOLS = (0, 6, 17)
"""The type's own, TCP, UDP. Others would have the kernel load modules that nobody needs."""

LOW_32_BITS = 0xFFFFFFFF
TERMINAL_REQUESTS = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "TIOCSETD": 0x5423}
"""They type into somebody's terminal, or change what reads it."""

PERSONALITIES = (0, LOW_32_BITS)
"""Linux as it is, and asking which one."""


def allowed(arch: "seccomp.Arch") -> "seccomp.SyscallFilter":
    """Make filter `a`."""
    made = _filter(arch, seccomp.ERRNO(errno.EPERM))
    made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    for name in " ".join(CALLS).split():
        if seccomp.resolve_syscall(arch, name) >= 0:  # some are of one kind of machine alone
            made.add_rule(seccomp.ALLOW, name)
    made.add_rule(seccomp.ALLOW, FCHMODAT2)
    arg, equal, masked = seccomp.Arg, seccomp.EQ, seccomp.MASKED_EQ
    made.add_rule(seccomp.ALLOW, "clone", arg(0, masked, NAMESPACES, 0))
    for name in ABSENT.split():
        made.add_rule(seccomp.ERRNO(errno.ENOSYS), name)
    for kind in UNIX_TYPES:
        for call in ("socket", "socketpair"):
            made.add_rule(seccomp.ALLOW, call, arg(0, equal, AF_UNIX), arg(1, masked, TYPE_MASK, kind))
    for family in (AF_INET, AF_INET6):
        for kind in (STREAM, DGRAM):
            for protocol in PROTOCOLS:
                wanted = arg(0, equal, family), arg(1, masked, TYPE_MASK, kind), arg(2, equal, protocol)
                made.add_rule(seccomp.ALLOW, "socket", *wanted)
    for personality in PERSONALITIES:
        made.add_rule(seccomp.ALLOW, "personality", arg(0, equal, personality))
    return made


def requests(arch: "seccomp.Arch") -> "seccomp.SyscallFilter":
    """Make filter `b`."""
    made = _filter(arch, seccomp.ALLOW)
    made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    for request in TERMINAL_REQUESTS.values():
        made.add_rule(seccomp.ERRNO(errno.EPERM), "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, LOW_32_BITS, request))
    return made


def _filter(arch: "seccomp.Arch", default: object) -> "seccomp.SyscallFilter":
    made = seccomp.SyscallFilter(default)
    if arch != seccomp.system_arch():
        made.add_arch(arch)
        made.remove_arch(seccomp.system_arch())
    made.set_attr(seccomp.Attr.CTL_OPTIMIZE, BY_TREE)
    return made


BY_TREE = 2
"""A search by halves instead of one comparison after another."""


def main() -> None:
    """Write all filters."""
    for machine, arch in MACHINES.items():
        for letter, made in (("a", allowed(arch)), ("b", requests(arch))):
            path = FOLDER / f"seccomp_{letter}.{machine}.bpf"
            with path.open("wb") as file:
                made.export_bpf(file)


if __name__ == "__main__":
    main()
