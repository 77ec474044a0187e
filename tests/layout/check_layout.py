"""The rules of the source tree, held against it.

usage: check_layout.py SOURCE BUILD COMPILER

 1. Dependencies run one way: base <- crypto, proto <- daemon, tracker, fs, tools; fs and tools do not know each
    other; of crypto they know FEW_CRYPTO. (An #include of ours names folder and file.)
 2. Every header compiles alone.
 3. A library's type stays in its own modules: no header includes OpenSSL, SQLite, FUSE or jansson, but those named in
    INTERNAL.
 4. No .c or .h file is over MAX_LINES.
 5. The banned functions are refused by the compiler: one file that uses each must fail to compile.
"""
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

SOURCE, BUILD, COMPILER = sys.argv[1:4]
MAY_INCLUDE = {
    "base": {"base"},
    "crypto": {"base", "crypto"},
    "proto": {"base", "proto"},
    "daemon": {"base", "crypto", "proto", "daemon"},
    "tracker": {"base", "crypto", "proto", "tracker"},
    "fs": {"base", "crypto", "proto", "fs"},
    "tools": {"base", "crypto", "proto", "tools"},
}
# What the two that know p2pd by its socket only may use of crypto/.
FEW_CRYPTO = {"fs": {"crypto/file_cipher.h"}, "tools": {"crypto/protection.h"}}
FOREIGN = re.compile(r'#\s*include\s*<(openssl/|sqlite3|fuse|jansson|argon2)')
# Headers of one folder's own that hold a library's types, included nowhere outside it.
INTERNAL = re.compile(r"^(crypto/(tls_)?internal\.h|crypto/[a-z_]*internal\.h|daemon/[a-z_]*(private|internal)\.h|"
                      r"tracker/[a-z_]*(private|internal)\.h|fs/[a-z_]*\.h|tools/[a-z_]*\.h)$")
MAX_LINES = 900
BANNED = ["strcpy(a, b)", "strcat(a, b)", "sprintf(a, b)", "strtok(a, b)", "localtime(&t)", "rand()", "atoi(a)"]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", '-DP2P_VERSION="test"', "-Wall", "-Wextra", "-Werror",
         "-Wno-unused-parameter", "-I", SOURCE, "-isystem", BUILD, "-isystem", "/usr/include/fuse3",
         "-include", os.path.join(SOURCE, "base/banned.h"), "-fsyntax-only"]

faults = []


def files():
    for folder in MAY_INCLUDE:
        for name in sorted(os.listdir(os.path.join(SOURCE, folder))):
            if name.endswith((".c", ".h")):
                yield folder, f"{folder}/{name}"


def check_text(folder, path):
    with open(os.path.join(SOURCE, path), encoding="utf-8") as file:
        lines = file.read().split("\n")
    if len(lines) > MAX_LINES:
        faults.append(f"{path}: {len(lines)} lines; what is the second module in it called?")
    for number, line in enumerate(lines, 1):
        ours = re.match(r'\s*#\s*include\s*"([a-z]+)/', line)
        if re.match(r'\s*#\s*include\s*"', line) and not ours:
            faults.append(f"{path}:{number}: an include without its folder")
        crypto = re.match(r'\s*#\s*include\s*"(crypto/[^"]+)"', line)
        if crypto and crypto.group(1) not in FEW_CRYPTO.get(folder, {crypto.group(1)}):
            faults.append(f"{path}:{number}: {folder}/ may not include {crypto.group(1)}")
        if ours and ours.group(1) not in MAY_INCLUDE[folder]:
            faults.append(f"{path}:{number}: {folder}/ may not include {ours.group(1)}/")
        if path.endswith(".h") and FOREIGN.match(line) and not INTERNAL.match(path):
            faults.append(f"{path}:{number}: a header that others include shows a library's types")


def compiles(text):
    with tempfile.NamedTemporaryFile("w", suffix=".c") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([COMPILER, *FLAGS, file.name], capture_output=True, text=True)
    return done.returncode == 0, done.stderr


def check_header(path):
    good, why = compiles(f'#include "{path}"\n#include "{path}"\n')
    return None if good else f"{path} does not compile alone:\n{why}"


def main():
    headers = []
    for folder, path in files():
        check_text(folder, path)
        if path.endswith(".h"):
            headers.append(path)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        faults.extend(filter(None, pool.map(check_header, headers)))
    prefix = "int f(char *a, const char *b);\nint f(char *a, const char *b)\n{\n    time_t t = 0;\n    (void)t;\n    (void)"
    good, why = compiles(prefix + "a;\n    (void)b;\n    return 0;\n}\n")
    if not good:
        faults.append(f"the probe for banned functions does not compile by itself:\n{why}")
    for call in BANNED:
        if compiles(prefix + f"{call};\n    return b != a;\n}}\n")[0]:
            faults.append(f"{call} compiles, although it is banned")
    print("\n".join(faults) if faults else f"{len(headers)} headers and all includes are in order")
    sys.exit(1 if faults else 0)


main()
