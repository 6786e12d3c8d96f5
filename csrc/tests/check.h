/* The smallest test harness that does the job: count checks, say where one failed, exit non-zero. */
#ifndef HM_TESTS_CHECK_H
#define HM_TESTS_CHECK_H

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static atomic_int check_done, check_failed; /* tests with threads check in several */

#define CHECK(condition) check_that((condition) ? 1 : 0, #condition, __FILE__, __LINE__)
#define CHECK_NEAR(a, b, tolerance) check_near((a), (b), (tolerance), #a " ~ " #b, __FILE__, __LINE__)
#define CHECK_TEXT(a, b) check_text((a), (b), #a " == " #b, __FILE__, __LINE__)
/* `part` must occur in `text`: for messages. */
#define CHECK_HAS(text, part) check_has((text), (part), __FILE__, __LINE__)

static inline int check_that(int passed, const char *what, const char *file, int line)
{
    check_done++;
    if (!passed) {
        check_failed++;
        fprintf(stderr, "%s:%d: FAILED %s\n", file, line, what);
    }
    return passed;
}

static inline int check_near(double a, double b, double tolerance, const char *what, const char *file, int line)
{
    int passed = check_that(fabs(a - b) <= tolerance, what, file, line);
    if (!passed) fprintf(stderr, "    %.17g against %.17g, tolerance %g\n", a, b, tolerance);
    return passed;
}

static inline int check_text(const char *a, const char *b, const char *what, const char *file, int line)
{
    int passed = check_that(a != NULL && b != NULL && strcmp(a, b) == 0, what, file, line);
    if (!passed) fprintf(stderr, "    \"%s\" against \"%s\"\n", a ? a : "(null)", b ? b : "(null)");
    return passed;
}

static inline int check_has(const char *text, const char *part, const char *file, int line)
{
    int passed = check_that(text != NULL && strstr(text, part) != NULL, part, file, line);
    if (!passed) fprintf(stderr, "    not in \"%s\"\n", text ? text : "(null)");
    return passed;
}

/* A program that checked nothing has failed. */
static inline int check_report(const char *name)
{
    printf("%s: %d checks, %d failed\n", name, check_done, check_failed);
    return check_failed > 0 || check_done == 0;
}

#endif
