#!/usr/bin/env python3
"""Runs the examples echo, serve and web while system calls fail, and checks the answers that their clients get.

usage: faults.py FOLDER_OF_EXAMPLES [WORD..]    only the cases whose names contain all words

Each case runs a server of its own, on one worker or on four. It asserts these laws:
* No client gets a wrong byte. Once the faults have stopped, each client is answered within PATIENCE.
* The server lives, and ends with status 0 when it is asked to. A server that cannot start ends with status 2 and one
  line that contains the system's reason. Neither panics.
* While calls fail, the server does not spin: the number of failed calls and its CPU time are bounded.
* Each failure that lasts is reported in few lines.
* After the clients have left, no socket is open that was not open before.

The last line counts the cases. The exit status is 1 if one has failed.
"""

import contextlib
import itertools
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Only a hang reaches this limit.
PATIENCE = 60
# The time for which calls fail.
STORM = 1.2
ALL = "1+"
SETUPS = [("echo", 1), ("echo", 4), ("serve", 1), ("web", 1), ("web", 4)]
# Two cases run at a time. More would only wait for the cores.
AT_A_TIME = 2
PATTERN = bytes((at % 251) ^ (at // 251 & 255) for at in range(251 * 241)) * 4
REFUSE = Path(__file__).with_name("refuse.py")
NUMBERS = itertools.count()
EXAMPLES = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


def check(condition, why):
    if not condition:
        raise Failed(why)


def wait_until(condition, why, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, f"not within {seconds} s: {why}")
        time.sleep(0.01)


def own_address():
    """An address with port 0 of which no other server here gets a port. A client of a server that has ended must not
    reach another one."""
    number = os.getpid() * 512 + next(NUMBERS)
    return f"127.{1 + (number >> 16) % 254}.{number >> 8 & 255}.{1 + number % 254}:0"


class Server:
    """An example that runs. `before` is put before its command: a tracer, say. The end of the block ends it."""

    def __init__(self, folder, program, workers, before=(), environment=None):
        self.program, self.workers, self.folder = program, workers, Path(folder)
        options = [] if program == "serve" else ["--workers", str(workers)]
        files = []
        if program == "web":
            files = [str(self.folder / "files")]
            os.makedirs(files[0], exist_ok=True)
            (self.folder / "files" / "file").write_bytes(PATTERN[:100_000])
        self.out, self.err = self.folder / "out", self.folder / "err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.child = subprocess.Popen(
                [*before, str(EXAMPLES / program), *options, *files, own_address()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "RUST_BACKTRACE": "1", **(environment or {})},
            )
        self.pid = self.child.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()

    def started(self):
        """Waits until it listens. Returns False if it has ended instead."""
        listens = re.compile(rf"^{self.program}: listening on (.+):(\d+)$", re.M)
        wait_until(
            lambda: self.child.poll() is not None or listens.search(self.out.read_text()), f"{self.program} starts"
        )
        found = listens.search(self.out.read_text())
        if found is None:
            return False
        self.address = (found[1], int(found[2]))
        return True

    def is_alive(self):
        """Whether it goes on after its first turn. One that ends may still answer a client, but accepts no second one."""
        results = [Client(self, number, post).ended() for number in range(2)]
        return results == ["answered"] * 2

    def sockets(self):
        """The number of its open sockets. A timerfd is made when a worker needs one, so others are not counted."""
        count = 0
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                count += os.readlink(f"/proc/{self.pid}/fd/{name}").startswith("socket:")
        return count

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, lines=0, refusal=None):
        """Asks it to end, and checks that it does. It may have reported `lines` lines, or have ended with the `refusal`
        as its reason just before it was asked."""
        self.child.send_signal(signal.SIGINT)
        try:
            status = self.child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.program} does not end") from None
        if status == 2 and refusal is not None:
            return self.refused_to_start(refusal)
        self.check_output(lines)
        check(status == 0, f"{self.program} has ended with status {status}: {self.err.read_text()}")
        check(f"{self.program}: " in self.out.read_text().splitlines()[-1], "the report is missing")

    def check_output(self, lines):
        errors = self.err.read_text()
        check("panicked" not in errors, f"{self.program} has panicked: {errors}")
        count = len(errors.splitlines())
        check(count <= lines, f"{self.program} has printed {count} lines, and may print {lines}: {errors[:2000]}")

    def refused_to_start(self, reason):
        """Checks that it has ended with an error that contains `reason`."""
        try:
            status, errors = self.child.wait(PATIENCE), self.err.read_text()
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.program} must end with an error that says {reason!r}") from None
        check("panicked" not in errors, f"{self.program} has panicked: {errors}")
        check(status == 2, f"{self.program} has ended with status {status}: {errors}")
        # The server of `web` also reports an error with which accepting has ended.
        lines = errors.splitlines()[-1:] if self.program == "web" and "cannot accept" in errors else errors.splitlines()
        is_named = len(lines) == 1 and lines[0].startswith(f"{self.program}: cannot serve on ") and reason in lines[0]
        check(is_named, f"{self.program} must say {reason!r} in one line: {errors!r}")


class Client:
    """One connection, on a thread of its own. `sent` is set once it is connected and has sent its request."""

    def __init__(self, server, number, ask=None):
        self.server, self.number = server, number
        self.result, self.sent = None, threading.Event()
        self.ask = ask or (http if server.program == "web" else echo)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            with socket.create_connection(self.server.address, PATIENCE) as stream:
                self.result = self.ask(stream, self)
        except (ConnectionError, BrokenPipeError) as error:
            self.result = f"closed: {error}"
        except Failed as error:
            self.result = f"WRONG: {error}"
        except TimeoutError:
            self.result = "hangs"

    def ended(self):
        self.thread.join(PATIENCE + 10)
        check(self.result is not None, f"client {self.number} hangs")
        check(not self.result.startswith("WRONG"), f"client {self.number}: {self.result}")
        check(self.result != "hangs", f"client {self.number} got no answer for {PATIENCE} s")
        return self.result


def request_of(number):
    """Requests of different sizes: in one segment, in a few, and more than a socket's buffer."""
    size = (64, 3_000, 100_000)[number % 3]
    return PATTERN[number : number + size]


def receive(stream, expected):
    """Reads until `expected` is complete. Returns False if the stream ends in the middle of it."""
    got = bytearray()
    while len(got) < len(expected):
        part = stream.recv(65536)
        got += part
        if got != expected[: len(got)]:
            raise Failed(f"wrong bytes within the first {len(got)}")
        if not part:
            return False
    return True


def echo(stream, client):
    request = request_of(client.number)
    sender = threading.Thread(target=send_quietly, args=(stream, request), daemon=True)
    sender.start()
    client.sent.set()
    whole = receive(stream, request)
    sender.join(PATIENCE)
    if not whole:
        return "closed"
    stream.shutdown(socket.SHUT_WR)
    if stream.recv(1):
        raise Failed("a byte too many")
    return "answered"


def send_quietly(stream, request):
    # The reader reports the end of the connection.
    with contextlib.suppress(OSError):
        stream.sendall(request)


def http(stream, client):
    """Sends the body of every second client back. The others get the file."""
    return post(stream, client) if client.number % 2 else http_file(stream, client)


def post(stream, client):
    """A request for which the server needs no thread and no descriptor but the connection's."""
    if client.server.program != "web":
        return echo(stream, client)
    body = request_of(client.number)
    head = f"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    return http_answer(stream, client, head.encode() + body, body)


def http_file(stream, client):
    return http_answer(stream, client, b"GET /file HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", PATTERN[:100_000])


def http_slow(stream, client):
    return http_answer(
        stream, client, b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"this took a second\n"
    )


def http_answer(stream, client, request, body):
    """Returns "answered", the status of another answer, or "closed" if the connection ends too early."""
    sender = threading.Thread(target=send_quietly, args=(stream, request), daemon=True)
    sender.start()
    client.sent.set()
    answer = bytearray()
    while part := stream.recv(65536):
        answer += part
    sender.join(PATIENCE)
    head, found, got = bytes(answer).partition(b"\r\n\r\n")
    if not found:
        return "closed"
    status = head.split(b" ", 2)[1].decode()
    if status != "200":
        return status
    if got != body[: len(got)]:
        raise Failed(f"wrong bytes in the {len(got)} of the body")
    if len(got) < len(body):
        return "closed"
    return "answered"


def all_answered(clients, why):
    results = [client.ended() for client in clients]
    check(set(results) == {"answered"}, f"{why}: {results}")


def ask(server, count, why, ask=None):
    all_answered([Client(server, number, ask) for number in range(count)], why)


@contextlib.contextmanager
def injected(server, *rules):
    """Makes calls of the server fail while the block runs. A rule is "CALLS:error=ERRNO:when=WHEN", as strace has it.

    Yields a function that counts the failed calls.
    """
    log = server.folder / "injected"
    calls = ",".join(rule.split(":")[0] for rule in rules)
    tracer = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={calls}", "-p", str(server.pid)]
    for rule in rules:
        tracer += ["-e", f"inject={rule}"]
    strace = subprocess.Popen(tracer, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        threads = f"/proc/{server.pid}/task"
        is_traced = lambda task: "TracerPid:\t0\n" not in Path(f"{threads}/{task}/status").read_text()
        wait_until(
            lambda: strace.poll() is not None or all(is_traced(task) for task in os.listdir(threads)), "strace attaches"
        )
        if strace.poll() is not None:
            raise Skipped(f"strace cannot attach to a process here: {strace.stderr.read().decode().strip()}")
        yield lambda: log.read_text().count("(INJECTED)")
    finally:
        # strace detaches from the server and ends.
        strace.send_signal(signal.SIGTERM)
        strace.wait(PATIENCE)
        strace.stderr.close()


CASES = []


def case(name, *words):
    """Adds a case. The function gets a folder of its own."""

    def add(run):
        CASES.append((" ".join([name, *map(str, words)]), run))
        return run

    return add


def add_failing_calls():
    """Calls that fail while clients come. Rows: the call, the errors, the calls that fail, whether the clients that come
    meanwhile are answered too, and the failed calls that are allowed."""
    rows = [
        # `serve` waits from 10 ms up to a second, and tries at the end of each wait and of each connection.
        ("accept4", ["EMFILE", "ENFILE", "ENOBUFS"], ALL, True, 100),
        # 64 of these are passed over before each wait.
        ("accept4", ["EPERM"], ALL, True, 4_000),
        # In the kernel each of these takes its connection out of the queue. Here it stays, and is accepted by the next call.
        ("accept4", ["ECONNABORTED", "EPROTO", "EINTR"], "1+2", True, 2_000),
        ("accept4", ["EMFILE", "EPERM", "ECONNABORTED"], "2..5", True, 40),
        ("epoll_wait", ["EINTR"], "1+2", True, 20_000),
        ("recvfrom", ["EINTR"], "1+2", True, 20_000),
        ("sendto", ["EINTR"], "1+2", True, 20_000),
        # A connection that cannot be registered ends.
        ("epoll_ctl", ["ENOSPC", "ENOMEM"], ALL, False, 2_000),
    ]
    for call, errors, when, answers, most in rows:
        for error in errors:
            for program, workers in SETUPS:
                case(call, error, when, program, workers)(failing_call(program, workers, call, error, when, answers, most))


def failing_call(program, workers, call, error, when, answers, most):
    def run(folder):
        with Server(folder, program, workers) as server:
            check(server.started(), server.err.read_text())
            ask(server, 2 * workers + 4, "before the faults")
            settled(server)
            before = server.sockets()
            # hyper writes by writev(2)'s relative for sockets.
            calls = {"sendto": "sendto,sendmsg", "recvfrom": "recvfrom,recvmsg"}.get(call, call)
            with injected(server, f"{calls}:error={error}:when={when}") as failed_calls:
                begin = server.cpu()
                clients = [Client(server, number) for number in range(12)]
                time.sleep(STORM)
                used = server.cpu() - begin
                failed = failed_calls()
                check(failed > 0, f"{call} was never called")
                check(failed <= most, f"{call} has failed {failed} times in {STORM} s")
                check(used < STORM / 2, f"the server has used {used} s of CPU time in {STORM} s")
            results = [client.ended() for client in clients]
            check(not answers or set(results) == {"answered"}, f"each client must be answered in the end: {results}")
            ask(server, 12, "after the faults")
            settled(server, before)
            # Each of the 12 connections may fail, and each wait.
            server.stop(lines=20 if program == "web" else 0)

    return run


def settled(server, sockets=None):
    """Waits until the sockets of all clients are closed."""
    counts = []

    def is_settled():
        counts.append(server.sockets())
        return counts[-1] == sockets if sockets else counts[-5:] == [counts[-1]] * 5

    try:
        wait_until(is_settled, "the sockets are closed", 20)
    except Failed:
        raise Failed(f"{counts[-1]} sockets are open, and {sockets} were before") from None


def add_start():
    """Each call that a server makes while it starts fails, one after the other."""
    rows = [
        ("epoll_create1", "EMFILE", "os error 24"),
        ("eventfd2", "EMFILE", "os error 24"),
        ("timerfd_create", "EMFILE", "os error 24"),
        ("epoll_ctl", "ENOSPC", "os error 28"),
        ("epoll_ctl", "ENOMEM", "os error 12"),
        ("clone3", "EAGAIN", "os error 11"),
        ("socket", "EMFILE", "os error 24"),
        ("socketpair", "ENFILE", "os error 23"),
        ("bind", "EACCES", "os error 13"),
        ("listen", "EADDRINUSE", "os error 98"),
        ("getsockname", "ENOBUFS", "os error 105"),
        ("fcntl", "EMFILE", "os error 24"),
    ]
    for call, error, reason in rows:
        for program, workers in SETUPS:
            case("start", call, error, program, workers)(failing_start(program, workers, call, error, reason))


def failing_start(program, workers, call, error, reason):
    def run(folder):
        for number in range(1, 100):
            log = Path(folder) / "injected"
            before = ["strace", "-D", "-f", "-qq", "-o", str(log), "-e", f"trace={call}"]
            before += ["-e", f"inject={call}:error={error}:when={number}"]
            with Server(folder, program, workers, before) as server:
                # The server may have said that it listens, and end with an error in its first turn.
                # A call that fails for a connection ends that one. Each thread counts its calls by itself.
                if server.started() and any(server.is_alive() for _ in range(workers + 1)):
                    server.stop(lines=1 if program == "web" else 0, refusal=reason)
                else:
                    server.refused_to_start(reason)
            if "(INJECTED)" not in log.read_text():
                return
        raise Failed("there is no end of the calls")

    return run


def add_pool():
    for workers in (1, 4):
        case("pool clone3 EAGAIN web", workers)(failing_pool(workers))


def failing_pool(workers):
    """Without a thread for blocking work a request fails. The next one that gets a thread is answered."""

    def run(folder):
        with Server(folder, "web", workers) as server:
            check(server.started(), server.err.read_text())
            ask(server, 6, "before the faults", post)
            with injected(server, f"clone3:error=EAGAIN:when={ALL}", f"clone:error=EAGAIN:when={ALL}") as failed_calls:
                results = [Client(server, number, http_file).ended() for number in range(6)]
                check(set(results) == {"403"}, f"without a thread no file is read: {results}")
                check(0 < failed_calls() <= 12, f"{failed_calls()} threads were tried for 6 files")
                ask(server, 6, "requests that need no thread", post)
            ask(server, 6, "after the faults", http_file)
            settled(server)
            server.stop()

    return run


def add_limits():
    for program, workers in SETUPS:
        case("limit leave", program, workers)(clients_leave(program, workers))
        case("limit stay", program, workers)(clients_stay(program, workers))


class Keeper:
    """A connection that is used again and again. `web` keeps it between requests."""

    def __init__(self, server):
        self.web = server.program == "web"
        self.stream = socket.create_connection(server.address, PATIENCE)

    def is_answered(self, number):
        """Returns False if the server has closed the connection."""
        body = PATTERN[number : number + 500]
        head = f"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() if self.web else b""
        try:
            self.stream.sendall(head + body)
            if not self.web:
                return receive(self.stream, body)
            got = b""
            while not got.endswith(b"\r\n\r\n"):
                byte = self.stream.recv(1)
                if not byte:
                    return False
                got += byte
            check(got.startswith(b"HTTP/1.1 200"), f"the answer is {got}")
            return receive(self.stream, body)
        except ConnectionError:
            return False

    def close(self):
        self.stream.close()


def limited(server, free):
    """Leaves the server `free` descriptors."""
    highest = max(int(name) for name in os.listdir(f"/proc/{server.pid}/fd")) + 1
    gaps = highest - server.descriptors()
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (highest + free - gaps, 4096))


@contextlib.contextmanager
def server_with_few_descriptors(folder, program, workers):
    """A server that has 6 descriptors left. At the end it must have as many sockets as before, and end when asked to."""
    with Server(folder, program, workers) as server:
        check(server.started(), server.err.read_text())
        ask(server, 2 * workers + 4, "before the limit", post)
        settled(server)
        before = server.sockets()
        limited(server, 6)
        yield server
        settled(server, before)
        server.stop(lines=20 if program == "web" else 0)


def run_beside(visit, keepers):
    """Calls `visit` for each keeper and its number, each on a thread of its own. Waits for them with a limit."""
    threads = [
        threading.Thread(target=visit, args=(keeper, number), daemon=True) for number, keeper in enumerate(keepers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)


def clients_leave(program, workers):
    """More clients than descriptors. Those that were answered leave, and then all others are answered."""

    def run(folder):
        with server_with_few_descriptors(folder, program, workers) as server:
            keepers = [Keeper(server) for _ in range(30)]
            answered = []

            def visit(keeper, number):
                ok = keeper.is_answered(number)
                # The descriptor is needed for a moment.
                time.sleep(0.02)
                keeper.close()
                answered.append(ok)

            run_beside(visit, keepers)
            check(answered == [True] * 30, f"{answered.count(True)} of 30 clients were answered")

    return run


def clients_stay(program, workers):
    """More clients than descriptors, and none leaves. Those that are served stay so. The others are closed, and are not
    left to a timeout of their own. When some have left, new clients are answered."""

    def run(folder):
        with server_with_few_descriptors(folder, program, workers) as server:
            keepers = [Keeper(server) for _ in range(20)]
            begin = server.cpu()
            results = {}

            def visit(keeper, number):
                results[number] = keeper.is_answered(number)

            run_beside(visit, keepers)
            check(len(results) == 20, f"{20 - len(results)} of 20 clients hang")
            used = server.cpu() - begin
            check(used < 0.6, f"the server has used {used} s of CPU time while it waited for descriptors")
            served = [number for number, is_answered in results.items() if is_answered]
            check(1 <= len(served) <= 6, f"{len(served)} clients were served with 6 descriptors")
            for number in served:
                check(keepers[number].is_answered(number), "a client that is served must stay so")
            for keeper in keepers:
                keeper.close()
            ask(server, 2, "after the clients have left", post)

    return run


def add_refused():
    for calls in (["timerfd_create"], ["ppoll"], ["timerfd_create", "ppoll"]):
        for error in ("EPERM", "ENOSYS"):
            rules = ",".join(f"{call}={error}" for call in calls)
            for program, workers in SETUPS:
                case("seccomp", rules, program, workers)(refused(program, workers, rules))
    for call in ("epoll_create1", "eventfd2"):
        for program, workers in SETUPS:
            case("seccomp start", f"{call}=EPERM", program, workers)(refused_at_start(program, workers, f"{call}=EPERM"))


def refused(program, workers, rules):
    """A call that the sandbox refuses for ever. Clients are answered, timers are right, and the server does not spin."""

    def run(folder):
        with Server(folder, program, workers, [sys.executable, str(REFUSE), rules]) as server:
            if not server.started():
                check(server.child.wait() == 77, server.err.read_text())
                raise Skipped(server.err.read_text().strip())
            begin = server.cpu()
            ask(server, 12, "with the call refused")
            settled(server)
            before = server.sockets()
            if program == "web":
                begin_slow = time.monotonic()
                ask(server, 4, "after a second", http_slow)
                took = time.monotonic() - begin_slow
                check(1 <= took < 5, f"a sleep of a second took {took} s")
            ask(server, 12, "with the call refused, again")
            settled(server, before)
            # A server that spins would use it all.
            idle = server.cpu()
            time.sleep(0.5)
            check(server.cpu() - idle < 0.2, f"an idle server has used {server.cpu() - idle} s of CPU time in 0.5 s")
            server.stop()

    return run


def refused_at_start(program, workers, rules):
    def run(folder):
        with Server(folder, program, workers, [sys.executable, str(REFUSE), rules]) as server:
            if not server.started() and server.child.wait() == 77:
                raise Skipped(server.err.read_text().strip())
            server.refused_to_start("os error 1")

    return run


def run_case(name, run):
    """Runs one case. Returns "passed", "skipped" or "failed"."""
    folder = tempfile.mkdtemp(prefix="faults-")
    try:
        if "limit" not in name and "seccomp" not in name and shutil.which("strace") is None:
            raise Skipped("strace is missing")
        run(folder)
        return "passed"
    except Skipped as why:
        print(f"skipped: {name}: {why}", flush=True)
        return "skipped"
    except Exception as why:  # noqa: BLE001 - Whatever fails, the other cases run.
        kind = "" if isinstance(why, Failed) else f"{type(why).__name__}: "
        print(f"FAILED: {name}: {kind}{why}", flush=True)
        return "failed"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    if not (EXAMPLES / "echo").exists():
        sys.exit(__doc__)
    for add in (add_failing_calls, add_start, add_pool, add_limits, add_refused):
        add()
    chosen = [(name, run) for name, run in CASES if all(word in name.split() for word in sys.argv[2:])]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        results = list(pool.map(lambda one: run_case(*one), chosen))
    counts = {kind: results.count(kind) for kind in ("passed", "skipped", "failed")}
    print("faults of programs: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    sys.exit(counts["failed"] > 0)


if __name__ == "__main__":
    main()
