/* Says when this machine's addresses or network interfaces change, as the kernel tells it (rtnetlink). */
#ifndef DAEMON_ADDRESSES_H
#define DAEMON_ADDRESSES_H

struct loop;
struct addresses;

/* `changed` is called on the loop's thread, a moment after the last of a burst of changes. NULL if the kernel does not
 * say; then look now and then. */
struct addresses *addresses_watch(struct loop *, void (*changed)(void *arg), void *arg);
void addresses_free(struct addresses *); /* NULL is fine */

#endif
