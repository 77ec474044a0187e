/* Where a connection comes from: for people, and for budgets. */
#ifndef BASE_SOURCE_H
#define BASE_SOURCE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define SOURCE_KEY_SIZE 16

/* The address without port, for people; `size` of INET6_ADDRSTRLEN is enough. */
void source_text(const struct sockaddr_storage *, char *out, size_t size);
/* Who shares a budget: an IPv4 address (as ::ffff:a.b.c.d, also where it came through an IPv6
 * socket), or an IPv6 address's /64: one household has as many addresses in it as it likes. */
void source_key(const struct sockaddr_storage *, uint8_t key[SOURCE_KEY_SIZE]);

#endif
