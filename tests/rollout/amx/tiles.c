/* AMX in software: the tile instructions of a processor that has them, for a process on one that has not.
 *
 * Preloaded (LD_PRELOAD) it takes SIGILL, decodes the instruction that raised it and carries it out on tiles kept
 * for each thread: LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED and TDPBF16PS,
 * in 64-bit mode (Intel, Software Developer's Manual, volume 2, and Architecture Instruction Set Extensions, AMX).
 * Any other illegal instruction ends the process as it would without this library. What was carried out is counted
 * in the file that AMX_COUNT names, eight bytes that all processes share.
 *
 * A multiplication rounds like the processor's: products of bfloat16 are exact in float32, the even and the odd ones
 * are summed apart and added to the tile last. Denormals are not flushed to zero, which the processor does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

struct config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static __thread struct config config;
static __thread uint8_t tiles[TILES][ROWS][ROW_BYTES];
static uint64_t *count;

/* The general registers in the order of their numbers in an instruction. */
static const int GENERAL[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

struct operand {
    int direct;       /* no memory: the second register is `rm` */
    int reg, rm;
    uint8_t *base;    /* base and displacement, without the index */
    int64_t index;    /* scaled: the stride of a tile in memory */
    int length;       /* bytes of ModRM, SIB and displacement */
};

static struct operand read_operand(const uint8_t *code, int vex_x, int vex_b, const greg_t *registers) {
    struct operand found = {0};
    const uint8_t modrm = code[0];
    const int mod = modrm >> 6, rm = modrm & 7;
    int64_t displacement = 0, base = 0;
    found.length = 1;
    found.reg = modrm >> 3 & 7;
    found.rm = rm;
    if (mod == 3) {
        found.direct = 1;
        return found;
    }
    int no_base = 0;
    if (rm == 4) {
        const uint8_t sib = code[found.length++];
        const int index = (sib >> 3 & 7) | vex_x << 3, at = (sib & 7) | vex_b << 3;
        if (index != 4) found.index = registers[GENERAL[index]] * (1ll << (sib >> 6));
        no_base = mod == 0 && (sib & 7) == 5;
        if (!no_base) base = registers[GENERAL[at]];
    } else if (mod == 0 && rm == 5) {
        /* Relative to the next instruction, which begins behind the displacement. */
        no_base = 1;
        base = (int64_t)(code + 5);
    } else {
        base = registers[GENERAL[rm | vex_b << 3]];
    }
    if (mod == 1) {
        displacement = (int8_t)code[found.length++];
    } else if (mod == 2 || no_base) {
        int32_t wide;
        memcpy(&wide, code + found.length, 4);
        displacement = wide;
        found.length += 4;
    }
    found.base = (uint8_t *)(base + displacement);
    return found;
}

static float bfloat16(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static void multiply(int into, int left, int right) {
    const int rows = config.rows[into], columns = config.row_bytes[into] / 4, pairs = config.row_bytes[left] / 4;
    for (int m = 0; m < rows; m++) {
        float even[ROW_BYTES / 4] = {0}, odd[ROW_BYTES / 4] = {0};
        const uint16_t *a = (const uint16_t *)tiles[left][m];
        for (int k = 0; k < pairs; k++) {
            const uint16_t *b = (const uint16_t *)tiles[right][k];
            const float a_even = bfloat16(a[2 * k]), a_odd = bfloat16(a[2 * k + 1]);
            for (int n = 0; n < ROW_BYTES / 4; n++) {
                even[n] += a_even * bfloat16(b[2 * n]);
                odd[n] += a_odd * bfloat16(b[2 * n + 1]);
            }
        }
        float *c = (float *)tiles[into][m];
        for (int n = 0; n < columns; n++) c[n] += even[n] + odd[n];
        memset(c + columns, 0, ROW_BYTES - 4 * columns);
    }
    memset(tiles[into][rows], 0, (ROWS - rows) * ROW_BYTES);
}

static void load(int tile, const struct operand *from) {
    memset(tiles[tile], 0, sizeof tiles[tile]);
    for (int row = 0; row < config.rows[tile]; row++)
        memcpy(tiles[tile][row], from->base + row * from->index, config.row_bytes[tile]);
}

static void store(int tile, const struct operand *to) {
    for (int row = 0; row < config.rows[tile]; row++)
        memcpy(to->base + row * to->index, tiles[tile][row], config.row_bytes[tile]);
}

/* Carries out the instruction at `code`; its length, 0 for one that is not of AMX. */
static int carry_out(const uint8_t *code, const greg_t *registers) {
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || code[2] & 0x84) return 0; /* VEX, 0F38, W0, 128 bits */
    enum { NONE, P66, PF3, PF2 } const prefix = code[2] & 3;
    const int third = ~code[2] >> 3 & 15;
    struct operand operand = read_operand(code + 4, !(code[1] & 0x40), !(code[1] & 0x20), registers);
    if (code[3] == 0x49 && operand.direct && prefix == NONE) {
        memset(&config, 0, sizeof config);
        memset(tiles, 0, sizeof tiles);
    } else if (code[3] == 0x49 && operand.direct && prefix == PF2) {
        memset(tiles[operand.reg], 0, sizeof tiles[operand.reg]);
    } else if (code[3] == 0x49 && prefix == NONE) {
        memcpy(&config, operand.base + operand.index, sizeof config);
        memset(tiles, 0, sizeof tiles);
    } else if (code[3] == 0x49 && prefix == P66) {
        memcpy(operand.base + operand.index, &config, sizeof config);
    } else if (code[3] == 0x4B && !operand.direct && (prefix == PF2 || prefix == P66)) {
        load(operand.reg, &operand);
    } else if (code[3] == 0x4B && !operand.direct && prefix == PF3) {
        store(operand.reg, &operand);
    } else if (code[3] == 0x5C && operand.direct && prefix == PF3) {
        multiply(operand.reg, operand.rm, third);
    } else {
        return 0;
    }
    return 4 + operand.length;
}

static void on_illegal(int number, siginfo_t *info, void *context) {
    (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const int length = carry_out((const uint8_t *)registers[REG_RIP], registers);
    if (length == 0) {
        signal(number, SIG_DFL); /* raised again on return, and this time it ends the process */
        return;
    }
    registers[REG_RIP] += length;
    if (count) __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
}

typedef int (*sigaction_function)(int, const struct sigaction *, struct sigaction *);

static sigaction_function real_sigaction(void) { return (sigaction_function)dlsym(RTLD_NEXT, "sigaction"); }

/* Whoever reports crashes (Python's faulthandler) would take the signal away. */
int sigaction(int number, const struct sigaction *action, struct sigaction *before) {
    if (number != SIGILL || !action) return real_sigaction()(number, action, before);
    if (before) memset(before, 0, sizeof *before);
    return 0;
}

__attribute__((constructor)) static void take_over(void) {
    const char *path = getenv("AMX_COUNT");
    const int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED) count = mapped;
        close(file);
    }
    struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    real_sigaction()(SIGILL, &action, NULL);
}
