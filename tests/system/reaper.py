"""Takes away what a test leaves that was killed: its processes, its mounts, its files.

Reads lines `+ DIRECTORY` and `- DIRECTORY` from standard input. When that ends, its owner has ended: of each directory that was
not taken back all mounts below it go, then all processes that name it in their command line or environment, then it
itself. Runs in a session of its own, so that whatever ends the owner does not end it.
"""
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time


def speaks_of(pid, directory):
    for file in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/{file}", "rb") as text:
                if directory.encode() + b"/" in text.read():
                    return True
    return False


def reap(directory):
    if not os.path.isdir(directory):
        return
    for _ in range(50): # a p2pfs may start a p2pd until it has ended itself
        with open("/proc/self/mounts") as mounts:
            for place in [line.split()[1] for line in mounts if line.split()[1].startswith(directory + "/")]:
                subprocess.run(["umount", "-l", place], check=False)
        alive = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid() and speaks_of(pid, directory)]
        if not alive:
            break
        for pid in alive:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(directory, ignore_errors=True)


def main():
    directories = set()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for line in sys.stdin:
        sign, directory = line.rstrip("\n").split(" ", 1)
        (directories.add if sign == "+" else directories.discard)(directory)
    for directory in directories:
        reap(directory)


if __name__ == "__main__":
    main()
