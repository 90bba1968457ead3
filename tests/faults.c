/* Makes chosen system calls fail. tests/faults.rs preloads this (LD_PRELOAD) into its child processes.
 *
 * FAULTS is a list of rules "CALL:ERRNO:FIRST:STEP ". Of the calls of the function CALL, number FIRST (counted
 * from 1) fails with ERRNO, and so does every STEP-th call after it. With a STEP of 0 no further call fails.
 * The rule "short:0:READ:WRITE " cuts every transfer to that many bytes instead.
 * The rule "timestamps:0:0:0 " has the kernel report when the bytes of a socket with TCP_NODELAY have left, in the
 * socket's error queue.
 *
 * A look-up of the name "wait-FD.invalid" sends a byte to the socket FD, waits for its end of file, sends another byte,
 * and fails.
 *
 * A write to a socket that could raise SIGPIPE always ends the process. If the program makes the system call itself,
 * the process ends when the write does raise the signal.
 * The destructor prints on stderr how often each rule was used.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/net_tstamp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(call) ((__typeof__(&call))dlsym(RTLD_NEXT, #call))

static struct rule {
    char call[16];
    int error;
    long first, step, seen, used;
} rules[16];
static int count;
static size_t most_read = -1, most_written = -1;
static int timestamps;

__attribute__((constructor)) static void begin(void)
{
    const char *text = getenv("FAULTS");
    int length;
    struct rule rule = {0};
    while (text && sscanf(text, " %15[^:]:%d:%ld:%ld%n", rule.call, &rule.error, &rule.first, &rule.step, &length) == 4) {
        if (strcmp(rule.call, "short") == 0) {
            most_read = rule.first;
            most_written = rule.step;
        } else if (strcmp(rule.call, "timestamps") == 0) {
            timestamps = 1;
        } else if (count < 16) {
            rules[count++] = rule;
        }
        text += length;
    }
}

__attribute__((destructor)) static void end(void)
{
    for (struct rule *rule = rules; rule < rules + count; rule++)
        fprintf(stderr, "faults: %s:%d used %ld times of %ld\n", rule->call, rule->error, rule->used, rule->seen);
}

/* Counts a call. Sets errno and returns true if the call must fail. */
static int fails(const char *call)
{
    int error = 0;
    for (struct rule *rule = rules; rule < rules + count; rule++) {
        if (strcmp(rule->call, call) != 0)
            continue;
        long past = __atomic_add_fetch(&rule->seen, 1, __ATOMIC_RELAXED) - rule->first;
        if (past == 0 || (past > 0 && rule->step > 0 && past % rule->step == 0)) {
            __atomic_add_fetch(&rule->used, 1, __ATOMIC_RELAXED);
            error = rule->error;
        }
    }
    if (error)
        errno = error;
    return error != 0;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Returns the first slice that is not empty, cut to `most` bytes. */
static struct iovec cut(const struct iovec *slices, int n, size_t most)
{
    struct iovec none = {0}, first;
    while (n > 0 && slices->iov_len == 0)
        slices++, n--;
    first = n > 0 ? *slices : none;
    first.iov_len = least(first.iov_len, most);
    return first;
}

static void check_signal(const char *call, int fd, int flags)
{
    struct stat stat;
    /* Rust's runtime ignores the signal at the start. This is for writes that bypass this library. */
    signal(SIGPIPE, SIG_DFL);
    if (!(flags & MSG_NOSIGNAL) && fstat(fd, &stat) == 0 && S_ISSOCK(stat.st_mode)) {
        fprintf(stderr, "faults: %s on a socket could raise SIGPIPE\n", call);
        abort();
    }
}

int accept4(int fd, __SOCKADDR_ARG address, socklen_t *restrict length, int flags)
{
    return fails("accept4") ? -1 : REAL(accept4)(fd, address, length, flags);
}

int connect(int fd, __CONST_SOCKADDR_ARG address, socklen_t length)
{
    return fails("connect") ? -1 : REAL(connect)(fd, address, length);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    if (timestamps && level == IPPROTO_TCP && name == TCP_NODELAY) {
        int flags = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
        if (REAL(setsockopt)(fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof flags) == 0)
            fprintf(stderr, "faults: timestamps are on\n");
    }
    return REAL(setsockopt)(fd, level, name, value, length);
}

ssize_t recv(int fd, void *bytes, size_t length, int flags)
{
    return fails("recv") ? -1 : REAL(recv)(fd, bytes, least(length, most_read), flags);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    struct msghdr shorter = *message;
    struct iovec first;
    if (fails("recvmsg"))
        return -1;
    if (most_read == (size_t)-1)
        return REAL(recvmsg)(fd, message, flags);
    first = cut(message->msg_iov, message->msg_iovlen, most_read);
    shorter.msg_iov = &first;
    shorter.msg_iovlen = 1;
    return REAL(recvmsg)(fd, &shorter, flags);
}

ssize_t send(int fd, const void *bytes, size_t length, int flags)
{
    check_signal("send", fd, flags);
    return fails("send") ? -1 : REAL(send)(fd, bytes, least(length, most_written), flags);
}

ssize_t sendto(int fd, const void *bytes, size_t length, int flags, __CONST_SOCKADDR_ARG to, socklen_t to_length)
{
    check_signal("sendto", fd, flags);
    return fails("sendto") ? -1 : REAL(sendto)(fd, bytes, least(length, most_written), flags, to, to_length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct msghdr shorter = *message;
    struct iovec first;
    check_signal("sendmsg", fd, flags);
    if (fails("sendmsg"))
        return -1;
    if (most_written != (size_t)-1) {
        first = cut(message->msg_iov, message->msg_iovlen, most_written);
        shorter.msg_iov = &first;
        shorter.msg_iovlen = 1;
    }
    return REAL(sendmsg)(fd, &shorter, flags);
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    check_signal("write", fd, 0);
    return REAL(write)(fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *slices, int n)
{
    check_signal("writev", fd, 0);
    return REAL(writev)(fd, slices, n);
}

int epoll_create1(int flags)
{
    return fails("epoll_create1") ? -1 : REAL(epoll_create1)(flags);
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    return operation == EPOLL_CTL_ADD && fails("epoll_add") ? -1 : REAL(epoll_ctl)(epoll, operation, fd, event);
}

int epoll_wait(int epoll, struct epoll_event *events, int n, int timeout)
{
    return fails("epoll_wait") ? -1 : REAL(epoll_wait)(epoll, events, n, timeout);
}

int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes, void *(*run)(void *),
                   void *restrict argument)
{
    return fails("thread") ? errno : REAL(pthread_create)(thread, attributes, run, argument);
}

int getaddrinfo(const char *restrict name, const char *restrict service, const struct addrinfo *restrict hints,
                struct addrinfo **restrict found)
{
    int fd;
    char byte;
    if (name && sscanf(name, "wait-%d.invalid", &fd) == 1) {
        send(fd, "", 1, MSG_NOSIGNAL);
        recv(fd, &byte, 1, 0);
        send(fd, "", 1, MSG_NOSIGNAL);
        return EAI_FAIL;
    }
    return fails("getaddrinfo") ? errno : REAL(getaddrinfo)(name, service, hints, found);
}

int eventfd(unsigned int initial, int flags)
{
    return fails("eventfd") ? -1 : REAL(eventfd)(initial, flags);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    long argument = va_arg(arguments, long);
    va_end(arguments);
    return command == F_DUPFD_CLOEXEC && fails("dup") ? -1 : REAL(fcntl)(fd, command, argument);
}
