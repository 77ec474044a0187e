/* p2pctl: accounts, status, everything that is not a file operation. See ctl.h for the map. */
#include "tools/ctl.h"

int main(int argc, char **argv)
{
    return ctl_run(argc, argv);
}
