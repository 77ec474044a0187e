#!/usr/bin/python3
"""Prints the table of known answers in crypto_merkle.c, computed by libtorrent (Debian: python3-libtorrent).

Content of every file: byte i is ((i * 2654435761 mod 2^32) >> 24) xor ((i >> 14) mod 256).
Each row: size, piece size, root as libtorrent reports it, SHA-256 of the piece layer. A file of one piece or
less has no piece layer in a torrent; here, as in merkle.h, it is the root alone, and an empty file's is empty.

    merkle_answers.py            the table
    merkle_answers.py --check    compares it with the one in crypto_merkle.c; exit status 1 if they differ
"""
import hashlib
import os
import re
import sys
import tempfile

import libtorrent as lt

K, M = 1024, 1024 * 1024
DEFAULT = 256 * K
SIZES = [0, 1, 55, 64, 16383, 16384, 16385, 32768, 32769, 49153, 65536, 81920, 262143, 262144, 262145,
         262144 + 16384, 524287, 524288, 524289, 3 * 262144, 3 * 262144 + 1, M, M + 1, 3 * M + 12345,
         5000001, 8 * M, 8 * M + 5]
LARGER = [(5000001, M), (5000001, 4 * M), (5000001, 8 * M), (4 * M + 1, 2 * M)]


def content(size):
    out = bytearray()
    for block in range(0, size, 16384):
        mask = (block >> 14) & 255
        out += bytes(((i * 2654435761 & 0xffffffff) >> 24) ^ mask
                     for i in range(block, min(block + 16384, size)))
    return bytes(out)


def answer(size, piece_size):
    with tempfile.TemporaryDirectory() as folder:
        top = os.path.join(folder, "t")
        os.mkdir(top)
        with open(os.path.join(top, "a"), "wb") as f:
            f.write(content(size))
        with open(os.path.join(top, "b"), "wb") as f:  # so that the torrent is never empty
            f.write(b"b")
        storage = lt.file_storage()
        lt.add_files(storage, top)
        torrent = lt.create_torrent(storage, piece_size, lt.create_torrent.v2_only)
        lt.set_piece_hashes(torrent, folder)
        made = torrent.generate()
        files = lt.torrent_info(made).files()
        index = [i for i in range(files.num_files()) if os.path.basename(files.file_path(i)) == "a"][0]
        root = files.root(index).to_bytes()
        layer = made[b"piece layers"].get(root, root if size > 0 else b"")
    return '    {%d, %d, "%s",\n     "%s"},' % (size, piece_size, root.hex(), hashlib.sha256(layer).hexdigest())


def main():
    lines = [answer(size, DEFAULT) for size in SIZES] + [answer(*row) for row in LARGER]
    if sys.argv[1:] != ["--check"]:
        print("\n".join(lines))
        return 0
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "crypto_merkle.c")
    with open(here, encoding="utf-8") as f:
        held = re.findall(r'\{(\d+), (\d+),\s*"(\w{64})",\s*"(\w{64})"\}', f.read())
    computed = re.findall(r'\{(\d+), (\d+),\s*"(\w{64})",\s*"(\w{64})"\}', "\n".join(lines))
    print("%d answers, %s" % (len(computed), "the same" if held == computed else "NOT the same"))
    return 0 if held == computed else 1


sys.exit(main())
