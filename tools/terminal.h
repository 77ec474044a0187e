/* The terminal: its size, and the full screen of --watch.
 *
 * While the full screen is up, the signals that would end or stop the program are held back until a
 * wait (client_unblock, terminal_pause), so that the screen is put back before they act. */
#ifndef TOOLS_TERMINAL_H
#define TOOLS_TERMINAL_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Columns of the terminal that `fd` is, or 0 if it is none. */
size_t terminal_width(int fd);
size_t terminal_height(int fd);

/* Turns to the alternate screen of standard output. */
void terminal_enter(void);
/* Puts the screen and the signals back. Fine if there was no terminal_enter. */
void terminal_leave(void);

/* The mask for waits while the full screen is up. */
const sigset_t *terminal_wait_mask(void);

/* True if it is time to end. A stop (Ctrl-Z) has then been served: the screen was put back for it. */
bool terminal_serve_signals(void);

/* Shows `text` from the upper left corner; what does not fit below is left out. */
void terminal_show(const char *text);

/* Waits that long, or until a signal. */
void terminal_pause(int64_t ns);

#endif
