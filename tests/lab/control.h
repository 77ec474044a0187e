/* How a lab is looked at and changed while it runs: an abstract socket, one message a command, one an answer.
 *
 * The socket is in the abstract namespace, so that nothing is left of it whatever ends the lab, and is open to
 * root alone. A command is a line of text:
 *
 *   set N|all SETTING     change a link (line.h has the syntax)
 *   show                  the hosts, one a line
 *   stats                 counters as one line of JSON
 *   clear                 counters back to 0
 *   enter N               the answer carries host N's network namespace (SCM_RIGHTS)
 *   quit                  end the lab
 *
 * The answer is text; its first word is "ok" or "error", and what was asked for follows on the next line. */
#ifndef LAB_CONTROL_H
#define LAB_CONTROL_H

#include "tests/lab/net.h"

#define CONTROL_COMMAND_MAX 1024
#define CONTROL_ANSWER_MAX  131072

/* --- the lab's side ------------------------------------------------------------------------------------- */

/* Listens under `name`. The descriptor (which does not block), or -1 with one line logged. */
int control_listen(const char *name);

/* Answers one command: writes the answer (at most CONTROL_ANSWER_MAX bytes with its NUL) and returns a
 * descriptor to send along, or -1. "quit" sets *quit. `command` is changed. */
int control_answer(struct net *, char *command, char *answer, bool *quit);

/* Takes a command from a connection and answers it. False when the connection has ended. */
bool control_serve(struct net *, int connection, bool *quit);

/* --- the other side --------------------------------------------------------------------------------------- */

/* Sends one command to the lab `name` and waits for the answer, which is the caller's (CONTROL_ANSWER_MAX bytes).
 * *fd gets the descriptor that came along, or -1; it may be NULL. 0; -1 with one line logged if there is no such
 * lab or the answer is an error. */
int control_ask(const char *name, const char *command, char *answer, int *fd);

#endif
