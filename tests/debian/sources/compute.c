/* compute OUTPUT ROUNDS: integers, doubles and long doubles, the heap, sleeps, and a line of the file per round. */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 29;
    return x * 0xc4ceb9fe1a85ec53ULL + 1;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    FILE *out = fopen(argv[1], "w");
    if (!out) {
        perror(argv[1]);
        return 1;
    }
    uint64_t hash = 1;
    double sum = 0;
    long double product = 1;
    for (int round = 0, rounds = atoi(argv[2]); round < rounds; round++) {
        size_t count = 20000 + hash % 60000;
        uint32_t *numbers = malloc(count * sizeof *numbers);
        if (!numbers)
            return 1;
        for (size_t i = 0; i < count; i++)
            numbers[i] = (uint32_t)(hash = mix(hash + i));
        qsort(numbers, count, sizeof *numbers, compare);
        for (size_t i = 0; i < count; i++) {
            sum += sqrt((double)numbers[i]) / (double)(i + 1);
            product = fmodl(product * (1.0L + numbers[i] / 4294967296.0L), 1000.0L) + 1.0L;
            hash = hash * 31 + numbers[i];
        }
        free(numbers);
        fprintf(out, "%d %016llx %.17g %.20Lg\n", round, (unsigned long long)hash, sum, product);
        if (fflush(out))
            return 1;
        struct timespec pause = {0, 3000000};
        while (nanosleep(&pause, &pause))
            if (errno != EINTR)
                return 1;
    }
    if (fclose(out))
        return 1;
    printf("%zu-byte pointers, %s\n", sizeof(void *), strerror(0));
    return 0;
}
