/* p2pctl: accounts, status, everything that is not a file operation. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "tools/text.h"

int main(int argc, char **argv)
{
    log_init("p2pctl", LOG_LEVEL_INFO, false);
    text_init();
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts("p2pctl " P2P_VERSION);
        return 0;
    }
    log_error("give a command");
    return 2;
}
