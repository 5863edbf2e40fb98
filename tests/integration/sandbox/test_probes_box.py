"""Attacks out of a box: on files, processes, the kernel and the network of the machine, over the service's own calls.

Each is made against a service that is root and against one that is not, all in one session's box, which has to outlive
them.
"""

import platform
import socket
from pathlib import Path

import pytest
from probing import Besieged, Probe, seconds

pytestmark = pytest.mark.asyncio(loop_scope="session")

NONE = "(ENOENT|EACCES|EROFS|EPERM)\n"
EPERM = "EPERM\n"

FILES = [
    Probe("a file of the machine", "tell(read, '@FILE@')", "ENOENT\n"),
    Probe("by way of the parents of the workspace", "tell(read, '/workspace/../../..@FILE@')", "ENOENT\n"),
    Probe("by way of a link", "os.symlink('@FILE@', 'out'); tell(read, 'out'); os.unlink('out')", "ENOENT\n"),
    Probe("by way of the first process's root", "tell(read, '/proc/1/root@FILE@')", "EACCES\n"),
    Probe("by way of its own root", "tell(read, '/proc/self/root@FILE@')", "ENOENT\n"),
    Probe("by way of the first process's folder", "tell(os.listdir, '/proc/1/cwd/..')", "EACCES\n"),
    Probe("another tenant's file by its path", "tell(read, '@THEIRS@')", "ENOENT\n"),
    Probe("another tenant's file by searching", "$ find / -xdev -name secret 2>/dev/null", ""),
    Probe("another tenant's file through the workspace", "$ cat ../*/*/secret ../../*/files/secret 2>&1",
          "(cat: [^\n]*: No such file or directory\n){2}"),
    Probe("secrets and homes", "$ ls -d /root /home /etc/shadow /etc/ssh /srv /mnt /boot /sys 2>/dev/null", ""),
    Probe("the folders of set-up", "$ ls -d /oldroot /newroot /.old* 2>/dev/null", ""),
    Probe("users of the machine", "$ cut -d: -f1 /etc/passwd /etc/group", "agent\nagent\n"),
    Probe("what is mounted names nobody else", "print('ten_b' in read('/proc/self/mountinfo').decode())", "False\n"),
    Probe("writing to the system", "for place in ('/', '/usr', '/usr/bin', '/etc', '/run', '/dev', '/opt', '/var', "
          "'/lib/', '/proc', '/proc/sys/kernel'):\n tell(write, place + '/x')", f"({NONE}){{11}}"),
    Probe("writing over a program", "for path in ('/bin/sh', '/usr/bin/env', '/run/agent.pyc', '/etc/passwd'):\n"
          " tell(write, path)", f"({NONE}){{4}}"),
    Probe("a second name for a program", "tell(os.link, '/usr/bin/env', 'env')", "EXDEV\n"),
    Probe("a program that is set-user-id", "import shutil, subprocess\nshutil.copy('/usr/bin/id', 'id')\n"
          "os.chmod('id', 0o6755)\nprint(subprocess.run(['./id', '-u'], capture_output=True, text=True).stdout)\n"
          "os.unlink('id')", "1000\n\n"),
    Probe("a device of its own", "import stat\ntell(os.mknod, 'd', 0o600 | stat.S_IFBLK, os.makedev(8, 0))\n"
          "tell(os.mknod, 'd', 0o600 | stat.S_IFCHR, os.makedev(1, 1))", EPERM * 2),
    Probe("devices of the machine", "$ ls -d /dev/mem /dev/kmsg /dev/fuse /dev/kvm /dev/sd* /dev/loop* /dev/vsock "
          "/dev/net/tun /dev/mapper 2>/dev/null; find /dev -type b", ""),
    Probe("giving a file away", "write('given')\ntell(os.chown, 'given', 0, 0)\ntell(os.chown, 'given', 1, 1)\n"
          "os.unlink('given')", "(EPERM\n|EINVAL\n){2}"),
    Probe("capabilities of a file", "write('capable')\ntell(os.setxattr, 'capable', 'security.capability', "
          "b'\\x01\\0\\0\\x02' + b'\\xff' * 16)\nos.unlink('capable')", "(EPERM|EOPNOTSUPP)\n"),
    Probe("a file that cannot be removed", "import fcntl\nwrite('stuck')\nwith open('stuck') as file:\n"
          " tell(fcntl.ioctl, file, 0x40086602, b'\\x10' + bytes(7))\nos.unlink('stuck')",
          "(EPERM|ENOTTY|EOPNOTSUPP)\n"),
    Probe("memory of the machine", "for path in ('/proc/kcore', '/proc/kmsg', '/proc/kpagecount'):\n tell(read, path)",
          f"({NONE}){{3}}"),
    Probe("settings of the kernel", "for path in ('kernel/core_pattern', 'kernel/modprobe', 'vm/drop_caches', "
          "'kernel/hostname', 'net/ipv4/ip_forward'):\n tell(write, '/proc/sys/' + path)\n"
          "tell(write, '/proc/sysrq-trigger')", f"({NONE}){{6}}"),
    Probe("shared memory of the machine", "$ ls -A /dev/shm /dev/mqueue 2>/dev/null", "(/dev/shm:\n)?"),
]  # fmt: skip

PROCESSES = [
    Probe("processes that are not its own", "print(sum(n.isdigit() for n in os.listdir('/proc')))", "[34]\n"),
    Probe("a process of the machine", "tell(os.kill, @PID@, 0)\ntell(os.kill, @SERVICE@, signal.SIGKILL)",
          "ESRCH\n" * 2),
    Probe("everybody", "tell(os.kill, -1, signal.SIGKILL)", "ESRCH\n", alone=True),
    Probe("the first process", "for number in range(1, 65): os.kill(1, number)\n"
          "time.sleep(0.05)\nprint('on')", "on\n"),
    Probe("the first process by many signals", "while True: os.kill(1, signal.SIGCHLD)", "", "cpu_time",
          {"cpu_time": seconds(0.1)}),
    Probe("the first process by descriptor", "tell(signal.pidfd_send_signal, os.pidfd_open(1), signal.SIGKILL)",
          "done None\n"),
    Probe("the secrets of the first process", "for name in ('mem', 'environ', 'maps', 'fd/0', 'auxv', 'stack', "
          "'pagemap', 'syscall'):\n tell(read, '/proc/1/' + name)\n"
          "for name in ('exe', 'cwd', 'root', 'fd/0', 'ns/net'):\n"
          " tell(os.readlink, '/proc/1/' + name)", "((EACCES|EPERM)\n){13}"),
    Probe("the first process's words", "words = read('/proc/1/cmdline').decode()\n"
          "print([word for word in ('/home/', '/tmp', 'workspaces', 'bwrap', 'ten_') if word in words])", "\\[\\]\n"),
    Probe("the service's environment", "print(sorted(os.environ))\nprint([n for n in os.environ if 'RETINUE' in n])",
          "\\['BOX_EXECUTION', 'HOME', 'LANG', 'LOGNAME', 'PATH', 'PWD', 'SHELL', 'TMPDIR', 'TZ', 'USER'\\]\n\\[\\]\n"),
    Probe("environments of all it sees",
          "$ cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c -e RETINUE -e KEY", "0\n"),
    Probe("descriptors that were left open", "print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:4])",
          "\\[0, 1, 2, 3(, 4)?\\]\n"),
    Probe("descriptors that a command inherits", "$ ls /proc/self/fd | wc -l", "4\n"),
    Probe("being root", "for act in (os.setuid, os.setgid, os.seteuid):\n tell(act, 0)\n"
          "tell(os.setresuid, 0, 0, 0)\ntell(os.setgroups, [0])", "((EPERM|EINVAL)\n){5}"),
    Probe("capabilities", "$ grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'",
          "(Cap\\w+:0{16}\n){5}NoNewPrivs:1\nSeccomp:2\n"),
    Probe("capabilities by asking", "header = ctypes.create_string_buffer(b'\\x22\\x05\\x08\\x20' + bytes(4))\n"
          "wanted = ctypes.create_string_buffer(b'\\xff' * 24)\ncall(126 if os.uname().machine == 'x86_64' else 91, "
          "ctypes.addressof(header), ctypes.addressof(wanted))", EPERM),
    Probe("going before others", "tell(os.nice, -10)\ntell(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(9))",
          EPERM * 2),
    Probe("wider limits", "import resource\nfor kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, "
          "resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_DATA):\n try:\n"
          "  resource.setrlimit(kind, (1 << 40, 1 << 40))\n except ValueError as error:\n  print('no')", "no\n" * 5),
    Probe("being spared when memory is short", "tell(write, '/proc/self/oom_score_adj', '-1000')", "(EACCES|EPERM)\n"),
    Probe("a terminal", "tell(os.open, '/dev/tty', os.O_RDWR)", "ENXIO\n"),
    Probe("another name for the machine", "import socket\ntell(socket.sethostname, 'x')", EPERM),
    Probe("a core that a program of the machine is told of", "import resource\n"
          "print(resource.getrlimit(resource.RLIMIT_CORE), flush=True)\nos.abort()", "\\(0, 0\\)\n", "signalled"),
]  # fmt: skip

KERNEL_CALLS = {
    "a user namespace": (272, 97, "0x10000000"),
    "a mount namespace": (272, 97, "0x20000"),
    "a network namespace": (272, 97, "0x40000000"),
    "another's namespace": (308, 268, "os.open('/proc/self/ns/net', 0), 0"),
    "a process in a user namespace": (56, 220, "0x10000000 | 17, 0, 0, 0, 0"),
    "mount": (165, 40, "b'none', b'/tmp', b'tmpfs', 0, 0"),
    "unmount": (166, 39, "b'/proc', 2"),
    "pivot_root": (155, 41, "b'/tmp', b'/tmp'"),
    "chroot": (161, 51, "b'/tmp'"),
    "open_tree": (428, 428, "-100, b'/', 1"),
    "fsopen": (430, 430, "b'tmpfs', 0"),
    "move_mount": (429, 429, "3, b'', -100, b'/tmp', 4"),
    "mount_setattr": (442, 442, "-100, b'/usr', 0, b'', 32"),
    "bpf": (321, 280, "0, 0, 0"),
    "io_uring": (425, 425, "8, 0"),
    "userfaultfd": (323, 282, "1"),
    "perf_event_open": (298, 241, "0, 0, -1, -1, 0"),
    "a key": (248, 217, "b'user', b'x', b'y', 1, -3"),
    "keyctl": (250, 219, "0, -3, 0"),
    "ptrace of the first process": (101, 117, "16, 1, 0, 0"),
    "ptrace of itself": (101, 117, "0, 0, 0, 0"),
    "reading another's memory": (310, 270, "1, 0, 0, 0, 0, 0"),
    "writing another's memory": (311, 271, "1, 0, 0, 0, 0, 0"),
    "another's descriptor": (438, 438, "os.pidfd_open(1), 0, 0"),
    "a file's handle": (303, 264, "-100, b'/usr', 0, 0, 0"),
    "a file by its handle": (304, 265, "-100, 0, 0"),
    "a module of the kernel": (175, 105, "0, 0, b''"),
    "another kernel": (246, 104, "0, 0, 0, 0"),
    "the end of the machine": (169, 142, "0xfee1dead, 672274793, 0x1234567, 0"),
    "swapping": (167, 224, "b'/workspace/x', 0"),
    "the clock": (227, 112, "0, b''"),
    "the kernel's log": (103, 116, "3, 0, 0"),
    "addresses that can be guessed": (135, 92, "0x40000"),
    "memory that nobody can look into": (447, 447, "0"),
    "watching all files": (300, 262, "0, 0"),
    "accounting": (163, 89, "b'/workspace/x'"),
    "comparing processes": (312, 272, "1, 1, 0, 0, 0"),
    "moving another's pages": (279, 239, "1, 0, 0, 0, 0, 0"),
    "a call of a later kernel": (600, 600, "0"),
}
"""Numbers by kind of machine, and what is asked."""

MACHINE = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)
KERNEL = [Probe(name, f"call({row[MACHINE]}, {row[2]})", EPERM) for name, row in KERNEL_CALLS.items()]
KERNEL += [
    Probe("flags of a process that no filter can see", "call(435, 0, 88)", "ENOSYS\n"),
    Probe("sockets that lead deep into the kernel", "for family, kind in ((16, 3), (17, 3), (38, 5), (40, 1), (31, 3), "
          "(29, 3), (15, 3), (30, 5), (21, 5), (41, 1), (44, 3), (9, 5), (2, 3), (10, 3), (2, 6), (2, 10)):\n"
          " tell(socket.socket, family, kind)", EPERM * 16),
    Probe("protocols that the kernel would load", "for protocol in (132, 136, 262, 33):\n"
          " tell(socket.socket, 2, 1, protocol)", EPERM * 4),
    Probe("typing into a terminal", "import pty\n_, terminal = pty.openpty()\n"
          "for request in (0x5412, 0x541C, 0x5423, 0x5412 | 1 << 32, 0x5412 | 0xFFFFFFFF << 32):\n"
          " print(_C.ioctl(terminal, ctypes.c_ulong(request), ctypes.create_string_buffer(b'x' * 8)))", "-1\n" * 5),
    Probe("a user of more than one box", "tell(write, '/proc/self/uid_map', '0 0 1')\n"
          "tell(write, '/proc/self/setgroups', 'allow')", f"({NONE}){{2}}"),
]  # fmt: skip
if platform.machine() == "x86_64":
    CODE = """
import mmap
def become(code):
    place = mmap.mmap(-1, 4096, prot=7)
    place.write(code)
    ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(place)))()
    print("done")
"""
    KERNEL += [
        Probe("calls of 32-bit machines", f"{CODE}become(bytes.fromhex('b814000000cd80c3'))", "", "signalled"),
        Probe("calls of x32", "call(0x40000000 | 39)", "", "signalled"),
    ]

NETWORK = [
    Probe("a port of the machine", "tell(reach, ('127.0.0.1', @PORT@))", "ECONNREFUSED\n"),
    Probe("a port of the machine by IPv6", "tell(reach, ('::1', @PORT@), socket.AF_INET6)", "[A-Z]+\n"),
    Probe("metadata of the cloud", "tell(reach, ('169.254.169.254', 80))", "ENETUNREACH\n"),
    Probe("a private network", "for host in ('10.0.0.1', '172.17.0.1', '192.168.0.1'):\n tell(reach, (host, 80))",
          "ENETUNREACH\n" * 3),
    Probe("the world", "tell(reach, ('1.1.1.1', 443))\ntell(reach, ('2606:4700:4700::1111', 443), socket.AF_INET6)",
          "(ENETUNREACH|EADDRNOTAVAIL|EAFNOSUPPORT)\n" * 2),
    Probe("datagrams", "tell(reach, ('127.0.0.1', @UDP@), socket.AF_INET, socket.SOCK_DGRAM)\n"
          "tell(reach, ('8.8.8.8', 53), socket.AF_INET, socket.SOCK_DGRAM)", "done None\nENETUNREACH\n"),
    Probe("names", "tell(socket.getaddrinfo, 'example.com', 80)", "refused\n"),
    Probe("a socket without a path", "tell(reach, '\\0@NAME@', socket.AF_UNIX)", "ECONNREFUSED\n"),
    Probe("a socket of the machine", "tell(reach, '@SOCKET@', socket.AF_UNIX)", "ENOENT\n"),
    Probe("interfaces", "$ sed 1,2d /proc/net/dev | cut -d: -f1; sed 1d /proc/net/route", " *lo\n"),
    Probe("an address of its own", "import fcntl\nwith socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:\n"
          " tell(fcntl.ioctl, one, 0x8916, b'lo:1' + bytes(36))\n tell(fcntl.ioctl, one, 0x8914, b'lo' + bytes(38))",
          EPERM * 2),
    Probe("raw packets", "tell(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)", EPERM),
    Probe("a way out that was not granted", "$ env | grep -ic proxy; ls /run | grep -v pyc", "0\n"),
    Probe("a port below 1024", "with socket.socket() as one:\n tell(one.bind, ('0.0.0.0', 80))", "EACCES\n"),
    Probe("sockets of the machine in lists", "$ cat /proc/net/unix /proc/net/tcp | grep -c -e '@NAME@' -e ' 0A '",
          "0\n"),
    Probe("firewalls", "with socket.socket() as one:\n tell(one.setsockopt, socket.SOL_IP, 64, bytes(84))", "[A-Z]+\n"),
]  # fmt: skip


GROUPS = {"files": FILES, "processes": PROCESSES, "kernel": KERNEL, "network": NETWORK}
SINGLE = [one for group in GROUPS.values() for one in group if not one.plain]


@pytest.mark.parametrize("group", GROUPS)
async def test_no_way_leads_out_of_a_box(besieged: Besieged, group: str) -> None:
    await besieged.try_out_together([one for one in GROUPS[group] if one.plain])


@pytest.mark.parametrize("probe", SINGLE, ids=str)
async def test_no_way_leads_out_of_a_box_for_what_needs_an_execution_of_its_own(
    besieged: Besieged, probe: Probe
) -> None:
    await besieged.try_out(probe)


async def test_a_box_for_one_execution_holds_as_well(besieged: Besieged) -> None:
    _, end = await besieged.exec("sh", "-c", "echo kept > /tmp/kept")
    assert end.exit_code == 0
    empty = Probe("what the session's box keeps", "print(os.listdir('/tmp'), os.listdir('/dev/shm'))", r"\[\] \[\]\n")
    chosen = [one for group in GROUPS.values() for one in group if one.plain]
    await besieged.try_out_together([empty, *chosen], one_shot=True)


async def test_what_is_looked_for_is_there_to_be_found(besieged: Besieged) -> None:
    """Attacks that see a wall would see it all the same if there were nothing behind it."""
    bait = besieged.bait
    assert Path(bait["FILE"]).read_text() in besieged.canaries
    assert all(above.stat().st_mode & 0o005 == 0o005 for above in Path(bait["FILE"]).parents)
    assert Path(bait["THEIRS"]).read_text() in besieged.canaries
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", int(bait["PORT"]))),
        (socket.AF_UNIX, "\0" + bait["NAME"]),
        (socket.AF_UNIX, bait["SOCKET"]),
    ):
        with socket.socket(family) as one:
            assert one.connect_ex(address) == 0
    environ = Path(f"/proc/{bait['SERVICE']}/environ").read_text()
    assert [canary for canary in besieged.canaries if canary in environ]
    status = Path(f"/proc/{bait['SERVICE']}/status").read_text()
    assert f"\nUid:\t{besieged.uid}\t{besieged.uid}\t" in status
