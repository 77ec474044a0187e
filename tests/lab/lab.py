"""Hosts in network namespaces, joined by emulated links, for tests and benchmarks: the program `lab`, started and ended.

    with Lab(3, "rate=100mbit,delay=5ms", {3: "up=20mbit,loss=0.1%"}) as lab:
        lab.run(1, "ping", "-c", "1", lab.address(2))
        server = lab.popen(2, ["iperf3", "-s"])
        lab.set(1, "delay=50ms")
        print(lab.stats()["hosts"][0]["up"]["bytes"])

Hosts count from 1. `lab --help` has the settings. The lab ends with the `with`, with stop(), and with this process,
even when that is killed; whatever runs in its hosts is killed then. Needs root.
"""
import itertools
import json
import os
import socket
import subprocess

HERE = os.path.dirname(os.path.realpath(__file__))
_numbers = itertools.count(1)


class LabError(Exception):
    """What the lab has to say against it, in one line."""


def program():
    """The lab that was built with the programs under P2P_BIN; else the release build's."""
    bin_directory = os.environ.get("P2P_BIN") or os.path.join(HERE, "../../build/release/bin")
    return os.path.realpath(os.path.join(bin_directory, "../tests/lab/lab"))


class Lab:
    def __init__(self, hosts, link="", own=None, seed=1):
        """`link` is every host's setting, own[N] host N's on top; `seed` decides which packets are lost."""
        self.name = f"{os.getpid()}.{next(_numbers)}"
        self.program = program()
        arguments = [self.program, "--name", self.name, "--hosts", str(hosts), "--seed", str(seed), "--attached"]
        if link:
            arguments += ["--link", link]
        for host, setting in (own or {}).items():
            arguments += ["--host", f"{host}:{setting}"]
        self.control = None
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        said = self.process.stderr.readline().decode()
        if "ready" not in said:
            self.stop()
            raise LabError(said.strip() or "the lab ended at once")
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(30)
        self.control.connect(f"\0p2p-lab/{self.name}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @staticmethod
    def address(host):
        return f"10.77.0.{host}"

    @staticmethod
    def address6(host):
        return f"fd77::{host:x}"

    def command(self, host, *arguments):
        """The same command, run in a host. Its process is the command itself: signals and its end are as ever."""
        return [self.program, "--name", self.name, "exec", str(host), *arguments]

    def popen(self, host, arguments, **more):
        return subprocess.Popen(self.command(host, *arguments), **more)

    def run(self, host, *arguments, **more):
        more.setdefault("check", True)
        more.setdefault("capture_output", True)
        more.setdefault("text", True)
        more.setdefault("timeout", 120)
        return subprocess.run(self.command(host, *arguments), **more)

    def ask(self, command):
        self.control.send(command.encode())
        answer = self.control.recv(1 << 18).decode()
        word, _, rest = answer.partition("\n")
        if word != "ok":
            raise LabError(word.partition(" ")[2])
        return rest

    def set(self, host, setting):
        """Changes a host's link, or all of them (host "all"), from now on."""
        self.ask(f"set {host} {setting}")

    def show(self):
        return self.ask("show")

    def stats(self):
        """Counters since the start or clear(): hosts[N-1]["up"|"down"]: packets, bytes, dropped, lost, held; and
        late_us, the worst lateness of a packet: large when this machine was too busy for the figures to mean much."""
        return json.loads(self.ask("stats"))

    def clear(self):
        self.ask("clear")

    def stop(self):
        """Ends the lab and what runs in it; again is fine."""
        if self.control is not None:
            self.control.close()
            self.control = None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stderr.close()
