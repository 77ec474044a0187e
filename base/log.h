/* One line per event on standard error: "p2pd: text".
 *
 * Any thread. A message is printed once, where its cause is known. Bytes outside printable UTF-8 are
 * escaped (\xNN), so that a stranger's name can neither forge a line nor reach a terminal.
 * Never log a secret. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Sets the program's name and what is printed; called once, before the first thread is made.
 * P2P_LOG=debug|info|warning|error in the environment overrides `level`.
 * `timestamps` puts local time in front (for a log file that is not the journal's). */
void log_init(const char *program, enum log_level level, bool timestamps);
const char *log_program(void);
bool log_enabled(enum log_level level);

void log_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
