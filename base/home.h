/* P2P_HOME: the one directory that holds everything of one member.
 *
 *   p2pd.sock            the local socket              p2pd.lock   held while p2pd runs
 *   device.key           the device's RSA key, 0600    device.crt  its certificate
 *   ca.crt               the tracker's CA, pinned      account     tracker's URL and account's name
 *   swarm                its URL, also after a log out  revoked  devices that were shown the door
 *   state.db             catalogue, journal, settings  p2pd.conf   optional configuration (INI)
 *   store/               contents, one by root         p2pd.log    when p2pd was started detached */
#ifndef BASE_HOME_H
#define BASE_HOME_H

/* Which directory: `option` (--home) if not NULL, else $P2P_HOME, else ${XDG_DATA_HOME:-~/.local/share}/p2pfs.
 * Returns an absolute malloc'ed path, or NULL if none can be told (no HOME). Creates nothing. */
char *home_find(const char *option);

/* "HOME/NAME", malloc'ed, never NULL. */
char *home_path(const char *home, const char *name);

/* Path of the local socket. If HOME is too long for a Unix socket address (107 bytes), a path under
 * $XDG_RUNTIME_DIR or /tmp/p2pfs-UID (0700) that is derived from the SHA-less FNV-1a of HOME.
 * malloc'ed, never NULL; the same for the same HOME in every program. Makes /tmp/p2pfs-UID where
 * that is needed; whoever connects checks the peer's user (stream_unix_peer). */
char *home_socket(const char *home);

#endif
