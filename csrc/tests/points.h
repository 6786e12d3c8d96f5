/* Explicit points in f64, for the tests that compare Gram arithmetic with plain arithmetic. */
#ifndef HM_TESTS_POINTS_H
#define HM_TESTS_POINTS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum { M_MOST = 65, N_MOST = 160 };

typedef struct points {
    size_t m, n;
    double x[M_MOST][N_MOST];
} points;

static uint64_t random_state = 1;

static inline double uniform(void) /* [−1, 1) */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) / 4503599627370496.0 - 1;
}

static inline double inner(const double *x, const double *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* Random rows whose n features shrink by `decay` each: decay 1 gives small gaps, 0.5 a steep spectrum. */
static inline points random_points(size_t m, size_t n, double decay)
{
    points p = {.m = m, .n = n};
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) p.x[i][j] = uniform() * pow(decay, (double)j);
    return p;
}

static inline void gram_of(const points *p, double *gram)
{
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < p->m; j++) gram[i * p->m + j] = inner(p->x[i], p->x[j], p->n);
}

static inline void about_mean(points *p, const double *weights)
{
    for (size_t j = 0; j < p->n; j++) {
        double sum = 0, total = 0;
        for (size_t i = 0; i < p->m; i++) {
            sum += (weights ? weights[i] : 1) * p->x[i][j];
            total += weights ? weights[i] : 1;
        }
        for (size_t i = 0; i < p->m; i++) p->x[i][j] -= sum / total;
    }
}

#endif
