/*
 * The older of two calls that do the same, as number and arguments. A machine younger than they are has only the other one
 * (include/uapi/asm-generic/unistd.h). `limit` is where a time limit can be put; none is asked for with -1.
 */
#ifndef OLDER_CALLS_H
#define OLDER_CALLS_H

#include <sys/syscall.h>

struct two_longs { long seconds, fraction; };

static inline long limit_in(struct two_longs *limit, long long ns, long in_a_second)
{
	if (ns < 0)
		return 0;
	*limit = (struct two_longs){(long)(ns / 1000000000), (long)(ns % 1000000000) / (1000000000 / in_a_second)};
	return (long)limit;
}

#ifdef SYS_poll
#define POLL_ONE(fd, ms, limit) SYS_poll, (long)(fd), 1, ((void)(limit), (long)(ms)), 0, 0, 0
#define EPOLL_WAIT(epoll, events, count, ms) SYS_epoll_wait, epoll, (long)(events), count, (long)(ms), 0, 0
#define PAUSE SYS_pause, 0, 0, 0, 0, 0, 0
#define SELECT(count, set, ns, limit) SYS_select, count, (long)(set), 0, 0, limit_in(limit, ns, 1000000), 0
#ifdef SYS__newselect
#undef SELECT
#define SELECT(count, set, ns, limit) SYS__newselect, count, (long)(set), 0, 0, limit_in(limit, ns, 1000000), 0
#endif
#else
#define POLL_ONE(fd, ms, limit) SYS_ppoll, (long)(fd), 1, limit_in(limit, (long long)(ms) * 1000000, 1000000000), 0, 8, 0
#define EPOLL_WAIT(epoll, events, count, ms) SYS_epoll_pwait, epoll, (long)(events), count, (long)(ms), 0, 8
#define PAUSE SYS_ppoll, 0, 0, 0, 0, 0, 0
#define SELECT(count, set, ns, limit) SYS_pselect6, count, (long)(set), 0, 0, limit_in(limit, ns, 1000000000), 0
#endif

#endif
