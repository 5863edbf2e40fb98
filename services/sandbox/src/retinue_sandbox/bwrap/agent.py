"""The program inside a box: begins what it is told to over one socket, holds it to its limits, and tells how it ended.

Standard library only, few imports, since each idle box holds all of it; Python source runs in a fork of it. `framing`
says how it is spoken to. What it runs has its user: where that ends it the box is lost, which the service sees, and the
service believes nothing that is said on the socket beyond bounds that it holds itself.

All that an execution has started is killed at its end, whatever it has done to hide: at the latest once nothing else
runs in the box.
"""

from __future__ import annotations

import gc
import os
import select
import site
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal

    from retinue_sandbox.bwrap import child, forwarder, framing, watching
else:  # they lie beside this file
    import _signal as signal  # without names for numbers, which take a megabyte

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import child
    import framing
    import watching

    forwarder = None
    if os.path.exists("/run/egress"):
        import forwarder
    del sys.path[0]

CONTROL = 0
"""Descriptor of the socket."""

OUTPUT_FACTOR = 64
"""So many times what is kept of a stream ends the execution."""

WATCH_S = 0.1
"""How often time, memory and processes are looked at."""

ROUNDS_MAX = 50
"""How often processes of an execution are looked for while they are killed, if others run beside it."""


class Agent:
    """Serves one socket until it closes."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._executions: dict[int, watching.Execution] = {}
        self._running: dict[int, watching.Execution] = {}
        """By the id of the first process."""
        self._by_fd: dict[int, watching.Execution] = {}
        self._in = bytearray()
        self._out = bytearray()
        self._writing = False
        self._forwarder_pid = 0
        self._next_watch = 0.0
        # In a box nothing comes before it but the box's own first process. Elsewhere it must not kill all that it can.
        self._alone = os.getpid() <= 2
        self._wake, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the box's first process the kernel keeps off the rest
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Serve until the other side has gone."""
        os.set_blocking(CONTROL, False)
        self._poll.register(CONTROL, select.EPOLLIN)
        self._poll.register(self._wake, select.EPOLLIN)
        self._send(framing.HELLO, 0, framing.NUMBER.pack(framing.VERSION))
        while True:
            timeout = max(0.0, self._next_watch - time.monotonic()) if self._running else -1
            for fd, events in self._poll.poll(timeout):
                if fd == CONTROL:
                    if not self._talk(events):
                        return
                elif fd == self._wake:
                    os.read(self._wake, framing.CHUNK)
                    self._reap()
                elif fd in self._by_fd:
                    self._move(self._by_fd[fd], fd)
            now = time.monotonic()
            if now >= self._next_watch:
                self._next_watch = now + WATCH_S
                self._watch(now)

    def _talk(self, events: int) -> bool:
        """Read and obey, write what waits; says whether the other side is still there."""
        if events & select.EPOLLOUT:
            self._write()
        if not events & ~select.EPOLLOUT:
            return True
        try:
            data = os.read(CONTROL, 4 * framing.CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._in += data
        at = 0
        while len(self._in) - at >= framing.HEADER.size:
            kind, number, length = framing.HEADER.unpack_from(self._in, at)
            begin, end = at + framing.HEADER.size, at + framing.HEADER.size + length
            if length > framing.REQUEST_MAX:
                return False
            if len(self._in) < end:
                break
            self._obey(kind, number, memoryview(bytes(self._in[begin:end])))
            at = end
        del self._in[:at]
        return bool(data)

    def _obey(self, kind: int, number: int, payload: memoryview) -> None:
        if kind in (framing.RUN, framing.PYTHON):
            if len(self._executions) < framing.EXECUTIONS_MAX and number not in self._executions:
                self._begin(kind, number, payload)
            else:
                self._refuse(number, "busy")
            return
        execution = self._executions.get(number)
        if execution is None:  # it has ended by itself meanwhile
            return
        if kind == framing.KILL:
            self._kill(execution, "cancelled")
        elif kind == framing.CREDIT:
            execution.credit += framing.NUMBER.unpack(payload)[0]
            self._go_on(execution)

    def _send(self, kind: int, number: int, payload: bytes) -> None:
        self._out += framing.HEADER.pack(kind, number, len(payload))
        self._out += payload
        if not self._writing:
            self._write()

    def _refuse(self, number: int, why: str) -> None:
        end = framing.END.pack(framing.OUTCOMES.index(why), child.NOT_BEGUN, 0, 0, 0)
        self._send(framing.EXIT, number, end)

    def _write(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(CONTROL, self._out[: 4 * framing.CHUNK])]
        except BlockingIOError:
            pass
        except OSError:  # nobody is there any more: reading says so too
            self._out.clear()
        if bool(self._out) != self._writing:
            self._writing = not self._writing
            self._poll.modify(CONTROL, select.EPOLLIN | (select.EPOLLOUT if self._writing else 0))

    def _begin(self, kind: int, number: int, payload: memoryview) -> None:
        execution = watching.Execution(number, framing.LIMITS.unpack_from(payload), framing.WINDOW)
        parts = first, folder, *_ = framing.take_parts(payload[framing.LIMITS.size :])
        if not os.path.isdir(folder):
            self._refuse(number, "no_folder")
            return
        self._begin_forwarder()
        out, err = os.pipe(), os.pipe()
        why = os.pipe() if kind == framing.PYTHON else (-1, -1)
        given = os.pipe() if kind == framing.RUN and first else (os.open("/dev/null", os.O_RDONLY), -1)
        theirs, ours = (given[0], out[1], err[1], why[1]), (out[0], err[0], given[1], why[0])
        if not self._running:  # there is nothing to be seen of what has just begun
            self._next_watch = execution.began + WATCH_S
        try:
            execution.pid = os.fork()
        except OSError:
            for fd in (*theirs, *ours):
                child.close(fd)
            self._refuse(number, "processes")
            return
        if execution.pid == 0:
            self._become(execution, kind, parts, theirs)
        for fd in theirs:
            child.close(fd)
        execution.why = why[0]
        self._executions[number] = self._running[execution.pid] = execution
        for fd, stream in ((out[0], framing.STDOUT), (err[0], framing.STDERR)):
            execution.pipes[fd] = (stream, framing.Kept(execution.output))
            self._follow(execution, fd, select.EPOLLIN)
        if given[1] >= 0:
            execution.stdin, execution.to_say = given[1], memoryview(first)
            self._follow(execution, given[1], select.EPOLLOUT)

    def _follow(self, execution: watching.Execution, fd: int, events: int) -> None:
        os.set_blocking(fd, False)
        self._by_fd[fd] = execution
        self._poll.register(fd, events)

    def _become(
        self,
        execution: watching.Execution,
        kind: int,
        parts: tuple[bytes, bytes, dict[bytes, bytes], list[bytes]],
        fds: tuple[int, int, int, int],
    ) -> None:
        """Be the new process. Never returns."""
        first, folder, environ, argv = parts
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            for target in (0, 1, 2):
                os.dup2(fds[target], target)
            os.chdir(folder)
            os.nice(child.NICE)
            child.limit(execution, len(self._own()))
            if kind == framing.RUN:
                child.become(argv, {watching.MARK: execution.use.mark, **environ})
            os.environb[watching.MARK] = execution.use.mark
            child.open_to_others(True)
            child.interpret(first, fds[3])
        except BaseException as error:
            child.complain(f"this could not be begun: {error!r}")
        finally:
            os._exit(child.NOT_BEGUN)

    def _begin_forwarder(self) -> None:
        """Have the way out of the box, if there is one, carried by a process; it is begun again where it was killed."""
        if forwarder is not None and not self._forwarder_pid:
            try:
                self._forwarder_pid = forwarder.start()
            except OSError:  # something in the box listens there itself
                self._forwarder_pid = 0

    def _move(self, execution: watching.Execution, fd: int) -> None:
        if fd == execution.stdin:
            self._feed(execution)
        elif not execution.paused:
            self._read(execution, fd)
            self._go_on(execution)

    def _read(self, execution: watching.Execution, fd: int) -> None:
        stream, kept = execution.pipes[fd]
        try:
            data = os.read(fd, framing.CHUNK)
        except BlockingIOError:
            if execution.status is None:
                return
            data = b""  # whoever might say more has been killed
        if data:
            head = kept.take(data)
            if head:
                execution.queue.append((stream, 0, head))
            if kept.total > OUTPUT_FACTOR * execution.output:
                self._kill(execution, "output")
            return
        self._leave(fd)
        del execution.pipes[fd]
        rest, omitted = kept.rest(), kept.omitted
        for start in range(0, len(rest), framing.CHUNK):
            execution.queue.append((stream, omitted, rest[start : start + framing.CHUNK]))
            omitted = 0

    def _feed(self, execution: watching.Execution) -> None:
        """Give it what it has not read yet, and the end behind that."""
        if execution.stdin < 0:
            return
        try:
            written = os.write(execution.stdin, execution.to_say)
            execution.to_say = execution.to_say[written:]
        except BlockingIOError:
            return
        except OSError:  # it does not want to read
            execution.to_say = memoryview(b"")
        if not execution.to_say:
            self._leave(execution.stdin)
            execution.stdin = -1

    def _leave(self, fd: int) -> None:
        del self._by_fd[fd]
        self._poll.unregister(fd)
        os.close(fd)

    def _go_on(self, execution: watching.Execution) -> None:
        """Send what may be sent, read on if there is room, and tell the end once all is said."""
        while True:
            while execution.queue and execution.credit > 0:
                stream, omitted, data = execution.queue.pop(0)
                execution.credit -= len(data) + framing.FRAME_COST
                self._send(stream, execution.number, framing.NUMBER.pack(min(omitted, framing.NUMBER_MAX)) + data)
            if execution.queue or execution.status is None or not execution.pipes:
                break
            self._read(execution, next(iter(execution.pipes)))
        paused = bool(execution.queue)
        if paused != execution.paused:
            execution.paused = paused
            for fd in execution.pipes:
                self._poll.modify(fd, 0 if paused else select.EPOLLIN)
        if execution.status is not None and not paused:
            self._finish(execution, execution.status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._forwarder_pid:
                self._forwarder_pid = 0
            execution = self._running.get(pid)
            if execution is None:
                continue
            if status and not execution.outcome:
                self._look(execution, watching.processes())  # what it left behind tells why it failed
            del self._running[pid]
            self._slaughter(execution)
            execution.status = status
            execution.use.cpu_s = max(execution.use.cpu_s, usage.ru_utime + usage.ru_stime)
            execution.memory_peak = usage.ru_maxrss * 1024
            execution.to_say = memoryview(b"")
            self._feed(execution)
            self._go_on(execution)

    def _finish(self, execution: watching.Execution, status: int) -> None:
        del self._executions[execution.number]
        code, outcome = child.judge(status, execution.take_letter())
        outcome = execution.outcome or (code and outcome == "exited" and execution.exceeded()) or outcome
        spent_ms = int((time.monotonic() - execution.began) * 1000)
        cpu_ms = int(execution.use.cpu_s * 1000)
        end = framing.END.pack(framing.OUTCOMES.index(outcome), code, spent_ms, cpu_ms, execution.memory_peak)
        self._send(framing.EXIT, execution.number, end)

    def _kill(self, execution: watching.Execution, outcome: str) -> None:
        if execution.status is None and not execution.outcome:
            execution.outcome = outcome
            self._slaughter(execution)

    def _slaughter(self, execution: watching.Execution) -> None:
        """Kill all that an execution has started."""
        if self._alone and all(other is execution for other in self._running.values()):
            child.kill(-1)
            watching.forget_segments()
            if self._forwarder_pid:
                os.waitpid(self._forwarder_pid, 0)  # its port is free from now on
                self._forwarder_pid = 0
            return
        for _ in range(ROUNDS_MAX):
            own, _ = self._split(execution, watching.processes())
            alive = [one for one in own if one.state not in (b"Z", b"X")]
            for one in alive:
                child.kill(one.pid)
            if not alive:
                return

    def _own(self) -> tuple[int, ...]:
        """Processes of the box itself."""
        return tuple({1, os.getpid(), self._forwarder_pid} - {0})

    def _split(
        self, execution: watching.Execution, found: dict[int, watching.Process]
    ) -> tuple[list[watching.Process], list[watching.Process]]:
        """Find the processes of an execution, and those that belong to nobody: they hide."""
        roots = {one.pid: one.use for one in self._executions.values() if one.status is None or one is execution}
        told = watching.owners(found, roots, self._own())
        own = [one for one in found.values() if told.get(one.pid) is execution.use]
        hidden = [one for one in found.values() if told.get(one.pid) is None and one.pid not in self._own()]
        return own, hidden if self._alone else []

    def _look(self, execution: watching.Execution, found: dict[int, watching.Process]) -> int:
        """Take down what an execution uses; answers bytes of memory."""
        own, hidden = self._split(execution, found)
        execution.use.look(own, hidden)
        return watching.memory(own + hidden, execution.memory)

    def _watch(self, now: float) -> None:
        found = watching.processes() if self._running else {}
        for execution in list(self._running.values()):
            memory = self._look(execution, found)
            if now >= execution.end:
                self._kill(execution, "wall_time")
            elif execution.use.cpu_s > execution.cpu_s:
                self._kill(execution, "cpu_time")
            elif memory > execution.memory:
                self._kill(execution, "memory")


def main() -> None:
    """Serve a box."""
    # What runs in the box has this user, and must not look into what it is told.
    child.open_to_others(False)
    # What every interpreter has, for source; the packages' own start-up files are not run.
    site.setquit()
    site.sethelper()
    sys.path += site.getsitepackages()
    gc.freeze()
    Agent().serve()
    os._exit(0)


if __name__ == "__main__":
    main()
