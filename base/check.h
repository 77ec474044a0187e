/* Assertions that stay on in every build.
 *
 * CHECK states an invariant of our own code: when it does not hold the process must not go on, so it
 * prints file, line and expression to standard error and aborts. Nothing that a peer, a user or a
 * disk can cause may reach a CHECK: those are errors, and are handled. */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

_Noreturn void check_failed(const char *file, int line, const char *expression);

#define CHECK(expression)                                                                          \
    do {                                                                                           \
        if (__builtin_expect(!(expression), 0))                                                    \
            check_failed(__FILE__, __LINE__, #expression);                                         \
    } while (0)

/* An object that crosses a thread or a void pointer starts with a magic number; CHECK_OBJECT proves
 * that the pointer is to a live object of the expected kind. Free it with its magic set to 0. */
#define CHECK_OBJECT(pointer, number) CHECK((pointer) != NULL && (pointer)->magic == (number))

#endif
