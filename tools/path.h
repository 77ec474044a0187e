/* What PATH on the command line means: a path inside the swarm, or a file under its mount. */
#ifndef TOOLS_PATH_H
#define TOOLS_PATH_H

/* The path inside the swarm: "/", "/videos/a.mkv". malloc'ed; or NULL with *why, malloc'ed, one
 * clause. A file under a mount of p2pfs is asked for its extended attribute "user.p2p.path", so this
 * may wait for p2pd. */
char *path_resolve(const char *argument, char **why);

/* Without empty, "." and ".." parts and without a "/" at the end; `path` begins with "/". malloc'ed. */
char *path_tidy(const char *path);

#endif
