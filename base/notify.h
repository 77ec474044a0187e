/* sd_notify(3)'s protocol: tells systemd "READY=1", "STOPPING=1", "STATUS=…" where it asked for it
 * (NOTIFY_SOCKET), does nothing elsewhere. Written out here because it is twenty lines and libsystemd
 * would bring its own dependencies into every member's daemon. */
#ifndef BASE_NOTIFY_H
#define BASE_NOTIFY_H

void notify_service_manager(const char *state);

#endif
