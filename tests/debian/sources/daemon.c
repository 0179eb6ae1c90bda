/* daemon UID ROUNDS: a classic daemon. Started as root it forks twice, gets a session of its own, gives up every right
 * and works on as UID in the directory in which it was started; "pid" holds its pid, "result" and "log" what it did. */
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t ticks;

static void tick(int signal)
{
    (void)signal;
    ticks++;
}

static void check(int failed, const char *what)
{
    if (failed) {
        perror(what);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    uid_t user = (uid_t)atoi(argv[1]);
    pid_t pid = fork();
    check(pid < 0, "fork");
    if (pid)
        _exit(0);
    check(setsid() < 0, "setsid");
    pid = fork();
    check(pid < 0, "fork");
    if (pid)
        _exit(0);
    umask(027);
    int null = open("/dev/null", O_RDWR), log = open("log", O_CREAT | O_WRONLY | O_APPEND, 0640);
    check(null < 0 || log < 0, "open");
    check(fchown(log, user, user), "fchown");
    dup2(null, 0);
    dup2(log, 1);
    dup2(log, 2);
    close(null);
    close(log);
    check(setgroups(0, NULL) || setgid(user) || setuid(user), "giving up root");

    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    check(sigaction(SIGALRM, &action, NULL), "sigaction");
    struct itimerval every = {{0, 20000}, {0, 20000}};
    check(setitimer(ITIMER_REAL, &every, NULL), "setitimer");

    FILE *file = fopen("pid.new", "w");
    check(!file, "pid.new");
    fprintf(file, "%d\n", getpid());
    fclose(file);
    check(rename("pid.new", "pid"), "rename");

    int rounds = atoi(argv[2]);
    file = fopen("result", "w");
    check(!file, "result");
    uint64_t hash = 88172645463325252ULL;
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < 5000000; i++) {
            hash ^= hash << 13;
            hash ^= hash >> 7;
            hash ^= hash << 17;
        }
        /* What it is must stay what it is. */
        fprintf(file, "%d %016llx uid %d %d gid %d %d groups %d root %d session %d umask %o\n", round,
                (unsigned long long)hash, getuid(), geteuid(), getgid(), getegid(), getgroups(0, NULL), setuid(0),
                getsid(0) != getpid(), umask(027));
        fflush(file);
        int before = ticks;
        while (ticks == before) /* the timer must go on ticking */
            pause();
    }
    check(fclose(file), "result");
    fprintf(stderr, "done after %d rounds\n", rounds);
    return 0;
}
