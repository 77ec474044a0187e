"""One of libtorrent's peers, for bench_swarm.py: torrent_peer.py seed|leech TORRENT DIRECTORY ADDRESS...

Prints "ready", begins at a line of standard input, prints "done" when it has all, and ends when it is killed. It meets the other
peers by their addresses and nobody else.
"""
import sys
import time

import libtorrent

PORT = 6881
role, torrent, directory, peers = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
session = libtorrent.session({
    "listen_interfaces": f"0.0.0.0:{PORT}", "enable_dht": False, "enable_lsd": False, "enable_upnp": False,
    "enable_natpmp": False, "alert_mask": 0})
parameters = libtorrent.add_torrent_params()
parameters.ti = libtorrent.torrent_info(torrent)
parameters.save_path = directory
parameters.flags &= ~(libtorrent.torrent_flags.auto_managed | libtorrent.torrent_flags.paused)
if role == "seed":
    parameters.flags |= libtorrent.torrent_flags.seed_mode
    handle = session.add_torrent(parameters)
    while not handle.status().is_seeding:
        time.sleep(0.05)
print("ready", flush=True)
sys.stdin.readline()
if role == "leech":
    handle = session.add_torrent(parameters)
for peer in peers:
    handle.connect_peer((peer, PORT))
while role == "leech" and not handle.status().is_seeding:
    time.sleep(0.02)
print("done", flush=True)
while True:
    time.sleep(60)
