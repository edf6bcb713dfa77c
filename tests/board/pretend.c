/* Preloaded under qemu, makes a program believe in another board than there is (.ci/board):
 *   PRETEND_SECONDS=N   the machine's clock is N seconds ahead: libfaketime does not reach the 64-bit clock of 32-bit programs
 *   PRETEND_NO_SHA2=1   an ARMv8 processor without SHA-2 instructions, as the Raspberry Pi 4's: qemu has none
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef __aarch64__
#define CLOCK clock_gettime
#define CLOCK_CALL SYS_clock_gettime
#define MOMENT timespec
#define SHA2 (1UL << 6) /* HWCAP_SHA2 */
#else
#define CLOCK __clock_gettime64
#define CLOCK_CALL SYS_clock_gettime64
#define MOMENT moment
#define SHA2 0UL

/* The C library's, which it has no public name for. */
struct moment {
    long long tv_sec;
    long long tv_nsec;
};

int CLOCK(clockid_t clock, struct MOMENT *moment);
#endif

int CLOCK(clockid_t clock, struct MOMENT *moment)
{
    int failed = syscall(CLOCK_CALL, clock, moment);
    const char *ahead = getenv("PRETEND_SECONDS");
    if (!failed && ahead && clock == CLOCK_REALTIME)
        moment->tv_sec += atoll(ahead);
    return failed;
}

unsigned long getauxval(unsigned long type)
{
    static unsigned long (*real)(unsigned long);
    if (!real)
        real = (unsigned long (*)(unsigned long))dlsym(RTLD_NEXT, "getauxval");
    unsigned long value = real(type);
    if (type == AT_HWCAP && getenv("PRETEND_NO_SHA2"))
        value &= ~SHA2;
    return value;
}
