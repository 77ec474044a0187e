"""The tests themselves: one that is killed leaves nothing behind."""
import os
import signal
import subprocess
import sys
import textwrap

from harness import SwarmTest, main, wait_for


def leaves(directory):
    """What is left of a test: mounts, processes, files."""
    with open("/proc/self/mounts") as mounts:
        found = [line.split()[1] for line in mounts if line.split()[1].startswith(directory)]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if directory.encode() in file.read():
                    found.append(pid)
        except OSError:
            pass
    return found + ([directory] if os.path.exists(directory) else [])


class Harness(SwarmTest):
    def test_a_test_that_is_killed_leaves_nothing(self):
        program = textwrap.dedent("""
            import signal, sys
            sys.path.insert(0, sys.argv.pop())
            from harness import SwarmTest, main
            class Killed(SwarmTest):
                def test(self):
                    ann, = self.members("ann")
                    ann.write("f", b"x")
                    print(self.directory, flush=True)
                    signal.pause()
            main()
            """)
        place = os.path.dirname(os.path.realpath(__file__))
        killed = subprocess.Popen([sys.executable, "-B", "-c", program, place], stdout=subprocess.PIPE, text=True,
                                  start_new_session=True)
        directory = killed.stdout.readline().strip()
        self.assertTrue(os.path.isdir(directory))
        self.assertTrue(leaves(directory))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stdout.close()
        wait_for("all to be gone", lambda: not leaves(directory), 20)


if __name__ == "__main__":
    main()
