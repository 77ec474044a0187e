/* p2pctl: accounts, status, everything that is not a file operation. See ctl.h for the map. */
#include "base/secrecy.h"
#include "tools/ctl.h"

int main(int argc, char **argv)
{
    secrecy_begin(); /* passwords pass through it */
    return ctl_run(argc, argv);
}
