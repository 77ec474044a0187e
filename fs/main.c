/* p2pfs: mounts the swarm as a directory. This file: arguments in, exit status out. */
#include "base/log.h"
#include "base/secrecy.h"
#include "fs/mount.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    struct options options;
    char fault[OPTIONS_FAULT_MAX];
    int status;

    log_init("p2pfs", LOG_LEVEL_INFO, false);
    secrecy_begin(); /* contents pass through it, and the keys of an encrypted store */
    if (!options_parse(&options, argc, argv, fault)) {
        log_error("%s (p2pfs --help)", fault);
        status = 2;
    } else if (options.help) {
        fputs(options_usage(), stdout);
        status = 0;
    } else if (options.version) {
        puts("p2pfs " P2P_VERSION);
        status = 0;
    } else {
        status = mount_run(&options);
    }
    options_done(&options);
    return status;
}
