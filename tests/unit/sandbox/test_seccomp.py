"""The filters of system calls, run as the kernel runs them: a program of the classic packet filter over one call."""

import errno
import struct

import pytest
from retinue_sandbox.bwrap import seccomp

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386, X32 = 0x40000003, 0x40000000
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
REFUSED, UNKNOWN = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
INSTRUCTION = struct.Struct("=HBBI")
STEPS_MAX = 4096

NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "ioctl": 16, "socket": 41, "socketpair": 53, "clone": 56, "execve": 59, "ptrace": 101,
        "personality": 135, "mount": 165, "add_key": 248, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
        "setns": 308, "process_vm_readv": 310, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "openat2": 437,
        "clone3": 435, "fchmodat2": 452, "memfd_secret": 447, "open_by_handle_at": 304, "init_module": 175,
        "landlock_create_ruleset": 444, "chroot": 161, "pidfd_getfd": 438,
        "memfd_create": 319, "msgget": 68, "msgsnd": 69, "semget": 64, "semop": 65, "shmget": 29,
    },
    "aarch64": {
        "read": 63, "write": 64, "ioctl": 29, "socket": 198, "socketpair": 199, "clone": 220, "execve": 221,
        "ptrace": 117, "personality": 92, "mount": 40, "add_key": 217, "keyctl": 219, "unshare": 97,
        "perf_event_open": 241, "setns": 268, "process_vm_readv": 270, "bpf": 280, "userfaultfd": 282,
        "io_uring_setup": 425, "openat2": 437, "clone3": 435, "fchmodat2": 452, "memfd_secret": 447,
        "open_by_handle_at": 265, "init_module": 105, "landlock_create_ruleset": 444, "chroot": 51, "pidfd_getfd": 438,
        "memfd_create": 279, "msgget": 186, "msgsnd": 189, "semget": 190, "semop": 193, "shmget": 194,
    },
}  # fmt: skip

CLOSED = (
    "ptrace", "mount", "add_key", "keyctl", "unshare", "perf_event_open", "setns", "process_vm_readv", "bpf",
    "userfaultfd", "io_uring_setup", "memfd_secret", "open_by_handle_at", "init_module", "chroot", "pidfd_getfd",
)  # fmt: skip
TIOCSTI, TIOCLINUX, TCGETS, FIONREAD = 0x5412, 0x541C, 0x5401, 0x541B
FUTURE = 600
"""A call that no kernel has yet."""


def judge(program: bytes, machine: int, number: int, *arguments: int) -> int:
    """Run one filter over a call; answers what the kernel is to do."""
    call = struct.pack("=IIQ6Q", number, machine, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    steps = list(INSTRUCTION.iter_unpack(program))
    accumulator = at = 0
    for _ in range(STEPS_MAX):
        code, if_true, if_false, value = steps[at]
        at += 1
        match code:
            case 0x20:  # load a word of the call
                (accumulator,) = struct.unpack_from("=I", call, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15 | 0x25 | 0x35 | 0x45:
                true = {
                    0x15: accumulator == value,
                    0x25: accumulator > value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }[code]
                at += if_true if true else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"an instruction that filters do not have here: {code:#x}")
    raise AssertionError("the filter does not end")


@pytest.fixture(params=sorted(NUMBERS))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def both(machine: str, name: str | int, *arguments: int, arch: int = 0) -> int:
    """What becomes of a call under both filters: the stricter of the two, as in the kernel."""
    number = name if isinstance(name, int) else NUMBERS[machine][name]
    answers = [
        judge(path.read_bytes(), arch or AUDIT_ARCH[machine], number, *arguments) for path in seccomp.filters(machine)
    ]
    assert len(answers) == len(seccomp.LETTERS)
    # The kernel's order: killing comes before errors, and errors before letting through.
    return next((one for one in answers if one == KILL_PROCESS), min(answers))


def test_what_programs_live_on_is_open(machine: str) -> None:
    for name in ("read", "write", "execve", "openat2", "fchmodat2"):
        assert both(machine, name) == ALLOW, name


@pytest.mark.parametrize("name", CLOSED)
def test_what_leads_deep_into_the_kernel_is_closed(machine: str, name: str) -> None:
    assert both(machine, name) == REFUSED


def test_memory_that_no_limit_counts_is_not_to_be_had(machine: str) -> None:
    for name in ("memfd_create", "msgget", "msgsnd", "semget", "semop"):
        assert both(machine, name) == UNKNOWN, name
    assert both(machine, "shmget") == ALLOW, "segments are counted"


def test_calls_that_come_with_later_kernels_are_closed(machine: str) -> None:
    assert both(machine, FUTURE) == REFUSED
    assert both(machine, "landlock_create_ruleset") == REFUSED


def test_calls_of_another_kind_of_machine_end_the_process(machine: str) -> None:
    assert both(machine, "read", arch=I386) == KILL_PROCESS


def test_x32_calls_end_the_process() -> None:
    for number in (0, 16, 59, 321):
        assert both("x86_64", X32 + number) == KILL_PROCESS


def test_processes_and_threads_can_be_made_and_namespaces_cannot(machine: str) -> None:
    sigchld, thread = 17, 0x3D0F00
    assert both(machine, "clone", sigchld) == ALLOW
    assert both(machine, "clone", thread) == ALLOW
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert both(machine, "clone", sigchld | flag) == REFUSED
    assert both(machine, "clone3", 1, 88) == UNKNOWN  # so that libraries use the one that can be looked at


def test_only_sockets_that_programs_use_are_open(machine: str) -> None:
    cloexec = 0o2000000
    for family, kind, protocol in ((1, 1, 0), (1, 2, 0), (1, 5, 0), (2, 1, 0), (2, 2, 17), (10, 1, 6), (10, 2, 0)):
        assert both(machine, "socket", family, kind | cloexec, protocol) == ALLOW, (family, kind, protocol)
    assert both(machine, "socketpair", 1, 1 | cloexec, 0) == ALLOW
    for family in (3, 4, 9, 15, 16, 17, 21, 29, 31, 38, 40, 44):  # AF_ALG, AF_VSOCK, AF_PACKET and others
        for kind in (1, 2, 3, 5):
            assert both(machine, "socket", family, kind, 0) == REFUSED, (family, kind)
    assert both(machine, "socket", 2, 3, 1) == REFUSED  # raw
    assert both(machine, "socket", 2, 1, 262) == REFUSED  # MPTCP
    assert both(machine, "socket", 2, 6, 0) == REFUSED  # DCCP, which would be loaded
    assert both(machine, "socketpair", 2, 1, 0) == REFUSED
    assert both(machine, "socket", 38 | 1 << 32, 5, 0) == REFUSED  # what the kernel takes for 38


def test_nothing_is_typed_into_a_terminal_whatever_the_high_bits_are(machine: str) -> None:
    for high in (0, 1 << 32, 0xFFFFFFFF << 32):
        for request in (TIOCSTI, TIOCLINUX):
            assert both(machine, "ioctl", 0, request | high) == REFUSED
    for request in (TCGETS, FIONREAD):
        assert both(machine, "ioctl", 0, request) == ALLOW


def test_the_personality_can_be_asked_for_and_not_changed(machine: str) -> None:
    assert both(machine, "personality", 0xFFFFFFFF) == ALLOW
    assert both(machine, "personality", 0x0040000) == REFUSED  # addresses that are not random


def test_a_machine_of_no_known_kind_has_no_filters() -> None:
    assert seccomp.filters("riscv64") == ()
    assert seccomp.filters("arm64") == seccomp.filters("aarch64")
