/* The inner loops of merges, for parts of tensors in float32; kernels.py calls them.

   Each gives the bytes of the numpy code that it stands for: every entry is computed by the same
   operations in the same order, and -ffp-contract=off keeps products and sums apart. `values` has
   one array of `size` entries for each expert, in the experts' order. Loops over entries are short
   enough for the cache and simple enough for the compiler to make vector instructions of them. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 1024 /* entries */

/* One version for each kind of processor; the loader of programs picks one. */
#if !defined(__x86_64__) || !defined(__GLIBC__) || !defined(__GNUC__) || defined(__clang__)
#define VERSIONS
#elif __GNUC__ < 12
#define VERSIONS __attribute__((target_clones("avx2", "default")))
#else
#define VERSIONS __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "numbers are read by their bytes, the lowest first"
#endif

typedef unsigned __int128 uint128;

/* Of which source this is; kernels.py does not use the library of another one. */
const uint64_t source_digest = SOURCE_DIGEST;

static inline int64_t smaller(int64_t first, int64_t second)
{
    return first < second ? first : second;
}

/* The bits of a number without its sign, which have the order of magnitudes. */
static inline uint32_t magnitude_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits & 0x7fffffff;
}

/* values[e] -= base */
VERSIONS void subtract_base(float **values, const float *base, int64_t experts, int64_t size)
{
    for (int64_t start = 0; start < size; start += BLOCK) {
        int64_t count = smaller(size - start, BLOCK);
        for (int64_t e = 0; e < experts; e++) {
            float *value = values[e] + start;
            for (int64_t i = 0; i < count; i++)
                value[i] -= base[start + i];
        }
    }
}

/* out[e] = weights[e] - base, of weights in bfloat16: the upper halves of float32 */
VERSIONS void subtract_base_bfloat16(const uint16_t **weights, const float *base, int64_t experts,
                                     int64_t size, float *out)
{
    for (int64_t e = 0; e < experts; e++)
        for (int64_t i = 0; i < size; i++) {
            uint32_t bits = (uint32_t)weights[e][i] << 16;
            float weight;
            memcpy(&weight, &bits, 4);
            out[e * size + i] = weight - base[i];
        }
}

/* out = sum(weights[e] * values[e]), then times or divided by `factor` */
VERSIONS void weighted_sum(const float **values, const float *weights, int64_t experts, int64_t size,
                           float factor, int64_t divides, float *out)
{
    for (int64_t start = 0; start < size; start += BLOCK) {
        int64_t count = smaller(size - start, BLOCK);
        float *total = out + start;
        for (int64_t i = 0; i < count; i++)
            total[i] = values[0][start + i] * weights[0];
        for (int64_t e = 1; e < experts; e++) {
            const float *value = values[e] + start;
            for (int64_t i = 0; i < count; i++)
                total[i] += value[i] * weights[e];
        }
        if (divides)
            for (int64_t i = 0; i < count; i++)
                total[i] /= factor;
        else
            for (int64_t i = 0; i < count; i++)
                total[i] *= factor;
    }
}

/* TIES: see ties.py. `elects` are the weights of the election. `is_weighted` tells whether the
   divisor is a sum of weights, in double precision. `counts` are entries with a positive and with a
   negative sum, and those where kept changes cancel. */
VERSIONS void ties(const float **values, const float *thresholds, const float *elects,
                   const double *weights, int64_t is_weighted, int64_t experts, int64_t size,
                   int64_t is_positive, float scale, float *out, int64_t *counts)
{
    float sum[BLOCK], divisor[BLOCK], total[BLOCK];
    double shares[BLOCK];
    int32_t positive[BLOCK];
    int64_t positives = 0, negatives = 0, cancelled = 0;
    for (int64_t start = 0; start < size; start += BLOCK) {
        int count = (int)smaller(size - start, BLOCK);
        for (int i = 0; i < count; i++)
            sum[i] = -0.0f; /* the one number that changes nothing when it is added to */
        for (int64_t e = 0; e < experts; e++) {
            const float *value = values[e] + start, threshold = thresholds[e], elect = elects[e];
            for (int i = 0; i < count; i++)
                sum[i] += value[i] * (float)(fabsf(value[i]) >= threshold) * elect;
        }
        for (int i = 0; i < count; i++) {
            positive[i] = is_positive ? sum[i] >= 0 : sum[i] > 0;
            total[i] = -0.0f;
            divisor[i] = 0;
        }
        if (is_weighted)
            memset(shares, 0, sizeof shares);
        for (int64_t e = 0; e < experts; e++) {
            const float *value = values[e] + start, threshold = thresholds[e];
            float weight = (float)weights[e];
            if (is_weighted) {
                for (int i = 0; i < count; i++) {
                    float kept = value[i] * (float)(fabsf(value[i]) >= threshold);
                    kept *= (float)((kept > 0) == positive[i]);
                    shares[i] += (double)(kept != 0) * weights[e];
                    total[i] += kept * weight;
                }
            } else {
                for (int i = 0; i < count; i++) {
                    float kept = value[i] * (float)(fabsf(value[i]) >= threshold);
                    kept *= (float)((kept > 0) == positive[i]);
                    divisor[i] += (float)(kept != 0);
                    total[i] += kept;
                }
            }
        }
        if (is_weighted)
            for (int i = 0; i < count; i++)
                divisor[i] = (float)(shares[i] + (double)(shares[i] == 0));
        else
            for (int i = 0; i < count; i++)
                divisor[i] += (float)(divisor[i] == 0);
        int32_t more_positives = 0, more_negatives = 0, more_cancelled = 0;
        for (int i = 0; i < count; i++) {
            float mean = total[i] / divisor[i];
            more_positives += sum[i] > 0;
            more_negatives += sum[i] < 0;
            more_cancelled += (sum[i] == 0) & (mean != 0);
            out[start + i] = mean * scale;
        }
        positives += more_positives;
        negatives += more_negatives;
        cancelled += more_cancelled;
    }
    counts[0] = positives;
    counts[1] = negatives;
    counts[2] = cancelled;
}

/* By expert, how many magnitudes are above a bracket of bits, and those within it. */
VERSIONS void bracket(const float **values, const uint32_t *lows, const uint32_t *highs,
                      int64_t experts, int64_t size, uint32_t *inside, int64_t *insides,
                      int64_t *aboves)
{
    uint8_t flags[BLOCK];
    for (int64_t e = 0; e < experts; e++) {
        uint32_t low = lows[e], high = highs[e], *found = inside + e * size;
        int64_t above = 0, within = 0;
        for (int64_t start = 0; start < size; start += BLOCK) {
            int count = (int)smaller(size - start, BLOCK);
            const float *value = values[e] + start;
            int32_t more = 0;
            for (int i = 0; i < count; i++)
                more += magnitude_bits(value[i]) > high;
            above += more;
            memset(flags, 0, sizeof flags);
            for (int i = 0; i < count; i++) {
                uint32_t bits = magnitude_bits(value[i]);
                flags[i] = (bits >= low) & (bits <= high);
            }
            for (int first = 0; first < count; first += 8) {
                uint64_t eight;
                memcpy(&eight, flags + first, 8);
                if (eight)
                    for (int i = first; i < first + 8 && i < count; i++) {
                        found[within] = magnitude_bits(value[i]); /* kept if it is counted */
                        within += flags[i];
                    }
            }
        }
        aboves[e] = above;
        insides[e] = within;
    }
}

/* out = scale * sum(weights[e] * (values[e] * masks[e] / densities[e])), without the division where
   a density is 0; `masks` are [experts x size]. */
VERSIONS void dropped_sum(const float **values, const uint8_t *masks, const float *densities,
                          const float *weights, int64_t experts, int64_t size, float scale, float *out)
{
    for (int64_t start = 0; start < size; start += BLOCK) {
        int64_t count = smaller(size - start, BLOCK);
        float *total = out + start;
        for (int64_t i = 0; i < count; i++)
            total[i] = -0.0f;
        for (int64_t e = 0; e < experts; e++) {
            const float *value = values[e] + start, density = densities[e], weight = weights[e];
            const uint8_t *mask = masks + e * size + start;
            if (density == 0)
                for (int64_t i = 0; i < count; i++)
                    total[i] += value[i] * (float)mask[i] * weight;
            else
                for (int64_t i = 0; i < count; i++)
                    total[i] += value[i] * (float)mask[i] / density * weight;
        }
        for (int64_t i = 0; i < count; i++)
            total[i] *= scale;
    }
}

/* out = scale * change + base; whether all are finite */
VERSIONS int64_t add_to_base(const float *change, float scale, const float *base, int64_t size,
                         float *out)
{
    int32_t wrong = 0;
    for (int64_t i = 0; i < size; i++) {
        out[i] = change[i] * scale + base[i];
        wrong |= magnitude_bits(out[i]) >= 0x7f800000;
    }
    return !wrong;
}

/* The same, rounded to bfloat16: to the nearest, and to even in the middle. */
VERSIONS int64_t add_to_base_bfloat16(const float *change, float scale, const float *base,
                                      int64_t size, uint16_t *out)
{
    int32_t wrong = 0;
    for (int64_t i = 0; i < size; i++) {
        float total = change[i] * scale + base[i];
        uint32_t bits;
        memcpy(&bits, &total, 4);
        wrong |= (bits & 0x7fffffff) >= 0x7f7f8000; /* what would be rounded to infinity, too */
        out[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return !wrong;
}

/* PCG64DXSM as numpy has it (O'Neill, https://www.pcg-random.org): the next state is
   state * MULTIPLIER + plus, and `output` makes a number of 64 bits of a state. */
#define MULTIPLIER 0xda942042e4dd58b5ULL
#define LANES 4 /* computed side by side, as each state waits for the one before */

struct jump { /* several steps in one: state * factor + offset */
    uint128 factor, offset;
};

static struct jump steps(uint64_t count, uint128 plus)
{
    struct jump all = {1, 0}, next = {MULTIPLIER, plus};
    for (; count; count >>= 1) {
        if (count & 1) {
            all.factor *= next.factor;
            all.offset = all.offset * next.factor + next.offset;
        }
        next.offset *= next.factor + 1;
        next.factor *= next.factor;
    }
    return all;
}

static inline uint64_t output(uint128 state)
{
    uint64_t high = (uint64_t)(state >> 64), low = (uint64_t)state | 1;
    high ^= high >> 32;
    high *= MULTIPLIER;
    high ^= high >> 48;
    return high * low;
}

/* mask = bits < upper; where they are equal, the place from `first` on is in `equal`. */
VERSIONS static int compare(const uint16_t *bits, int from, int to, uint16_t upper, int64_t first,
                            uint8_t *mask, int64_t *equal)
{
    int found = 0;
    int32_t any = 0;
    for (int i = from; i < to; i++) {
        mask[first + i] = bits[i] < upper;
        any |= bits[i] == upper;
    }
    for (int i = from; any && i < to; i++)
        if (bits[i] == upper)
            equal[found++] = first + i;
    return found;
}

/* Whether 16 random bits are below `upper`, for `size` entries from `start` on, four to a number.
   `seeds` are the upper and lower halves of the state and of `plus`. The result is how many are
   equal to `upper`; `equal` has their places. */
int64_t random_mask(const uint64_t *seeds, int64_t start, int64_t size, int64_t upper,
                    uint8_t *mask, int64_t *equal)
{
    enum { NUMBERS = BLOCK / 4, IN_LANE = NUMBERS / LANES };
    uint128 plus = ((uint128)seeds[2] << 64) | seeds[3] | 1, states[LANES];
    struct jump ahead = steps((uint64_t)start / 4, plus), lane = steps(IN_LANE, plus);
    struct jump others = steps(NUMBERS - IN_LANE, plus);
    states[0] = (((uint128)seeds[0] << 64) | seeds[1]) * ahead.factor + ahead.offset;
    for (int l = 1; l < LANES; l++)
        states[l] = states[l - 1] * lane.factor + lane.offset;
    uint64_t numbers[NUMBERS];
    uint16_t bits[BLOCK];
    int64_t found = 0;
    for (int64_t first = -(start % 4); first < size; first += BLOCK) {
        for (int i = 0; i < IN_LANE; i++)
            for (int l = 0; l < LANES; l++) {
                numbers[l * IN_LANE + i] = output(states[l]);
                states[l] = states[l] * MULTIPLIER + plus;
            }
        for (int l = 0; l < LANES; l++)
            states[l] = states[l] * others.factor + others.offset;
        memcpy(bits, numbers, sizeof bits);
        int from = first < 0 ? (int)-first : 0, to = (int)smaller(size - first, BLOCK);
        found += compare(bits, from, to, (uint16_t)upper, first, mask, equal + found);
    }
    return found;
}
