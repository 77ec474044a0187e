/* crypto/merkle.h and crypto/sha256_multi.h: known answers that libtorrent computed, every lane
 * count against OpenSSL, and the ways to compute a tree against each other. The table is made by
 * merkle_answers.py. */
#include "crypto/merkle.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "base/hex.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "crypto/sha256_multi.h"

static const struct {
    uint64_t size;
    uint32_t piece_size;
    const char *root, *layer;
} answers[] = {
    /* clang-format off */
    {0, 262144, "0000000000000000000000000000000000000000000000000000000000000000",
     "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {1, 262144, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
     "1406e05881e299367766d313e26c05564ec91bf721d31726bd6e46e60689539a"},
    {55, 262144, "87a26dae81d37e91b25fae7899274e680a048ea44f82b18397b6585c2615c6b7",
     "882ca862ffe7cdc21b89b518bd4a6e22a3e63ff718c6c4270aec2872078d4455"},
    {64, 262144, "51e945469a3948debf6fc154e954fd6623ebbc21da2a3ee5e3ee0264e2cef6f2",
     "f54ce2b6f6e8d2790cfdb4e6b543b09ef25f0cb8e6fb6615c2ca005cc4d8ab07"},
    {16383, 262144, "fefe0b8c9dd5e32590241cb2fce06f56816d597062093f38fd990b95e7cd5a21",
     "8a94782a312e78c84698c5b3089a77688f7dccf61f513a26344c04f8ac1f50ba"},
    {16384, 262144, "8d5a927da22402130e8b3197f1be29eba10ca80071426f10eed00cb5fa4c4cbb",
     "f5b92cb7f41357b257848a2bb1dbab8189a65a7eb7081f00f9c022de3893e982"},
    {16385, 262144, "74900710c79c91c62608bcf8cf7814dcc504dea331a48533def72d4a32a9d666",
     "bde766457cc3ae39d3686b9e48d17c095363cfbdc8a94e7a060913471489e14f"},
    {32768, 262144, "e32668d047a58809193839c5bc03fd692f90eb44012de7f565d156414869f21e",
     "d7552e53d7f06914a234aa0d1ce252f54d5e58046df02e94e793a2d538f8fd60"},
    {32769, 262144, "7a907007353ae7ff35e751812cc16e51b744dcdd7716e867457f88e9da624798",
     "a8d0417aab30121287b32ecd5695a51d2e54b8f11baaea8fdb6a44cdfeac05c3"},
    {49153, 262144, "467eec7509b0dd0cdf05cb8e1ba8f31e4161625bc659c0d9e0cde3022778672f",
     "22f07ab22e4f2b8d6dc48315774d02939052a421655ad859b427977f4cf4f220"},
    {65536, 262144, "be0f26cba872b2e833271b00a65a6d28da667b15ab5b31f2a664b1615c036021",
     "f14ef0518732b2896d0a5f37b791d749e85ef7a67a22b794a994891e0c02a0ad"},
    {81920, 262144, "985572c3b1a2df918e89898f6ce0c7f683e31a9be899edf75273d8c207d7100f",
     "9557950f088907a78d177956f22d0e0529544db3b372c86293d21c658b68bef5"},
    {262143, 262144, "7ca7bbc5fb1a6f95ad4d57da0606684bca63353afa27a3b0da9134e7ec91bb62",
     "19baf0ea8ba71b2636fc1137f74c9516f4a88372f2755effa2494bf1098db341"},
    {262144, 262144, "b121c2635bc3393242fddad7020f0c15455cb75c5e3e00498973bb53df18c66b",
     "df9fa4b04de922c31eaf9c6682b3ec39249ac12cce597c1cd5a4ca7ef386ae54"},
    {262145, 262144, "0fbe819458f6c7fe8058aa32e8463cb10ae51ff2ae32df5872b6a9b127cabc4d",
     "0fbe819458f6c7fe8058aa32e8463cb10ae51ff2ae32df5872b6a9b127cabc4d"},
    {278528, 262144, "139d0e9b305227a065d5d7631d51c4279918ab0370b9da01749f6813620c9ebc",
     "139d0e9b305227a065d5d7631d51c4279918ab0370b9da01749f6813620c9ebc"},
    {524287, 262144, "51f7d56452aefa58338f93a8c938cdbbfe9c2e2e652e5b44ba579546de30cf74",
     "51f7d56452aefa58338f93a8c938cdbbfe9c2e2e652e5b44ba579546de30cf74"},
    {524288, 262144, "af98b3008354f1b9b0286f0aa3e88c13cb5760835f1e57a95ad6c0a1252c9ffc",
     "af98b3008354f1b9b0286f0aa3e88c13cb5760835f1e57a95ad6c0a1252c9ffc"},
    {524289, 262144, "f7dccd935535ec527706de7032e7c56bd4d02c6da98cb6a58c353c2d6a1f4322",
     "7e430b68438aeae71a64d2bd4d65f903d281da3d4fb458d4c04f857b14956b1f"},
    {786432, 262144, "44b727a552e5a7ab7d351dcf84020dd40f92904178d201adbce1f3d57f762720",
     "16bcb7e00978e9bb19c5d8de4f0e32313cea68d4dfe9295b1eb0665b48918340"},
    {786433, 262144, "4a3543890a77da44514d9dc9cd2db721a05400a00d3f584b901620d3f9692d4f",
     "e4c9e2674b5277d3ef79f6bcaf24ef5aa1f1b4162bfa242e8d08f44050ea5e18"},
    {1048576, 262144, "0ec97003ffa4061066806fa39070b5c1001506bb542fb2cc97c4cb2087ffcebe",
     "50516322468a903b617469181c5298cd2247001bda6700e12c2ca005b10cdc58"},
    {1048577, 262144, "1ef7614056ec43a714c33a6654b84ac98fa62995bcefd8ca1bbd8bc85a5ea506",
     "8abbe68d554fa1adddcf67e496993d3791c24874eaa581aa27de701567e509f9"},
    {3158073, 262144, "0eee1914e1fdc4ec9e21b2e2c923fb738334e2f95e73283f3ba2cae2287999ef",
     "605f2b4a053b4f1c1125d062577db9efe8f001b31d2c9477b029881ad623950b"},
    {5000001, 262144, "22d7a05b53b12996512c33f3ea401b7d0112f5085eff494bd860147ee9b7d05b",
     "9bd539990f16ff7b02403e60fe0077ee7062bbeb9695c91388de0341f8f3339c"},
    {8388608, 262144, "0856586221d7139064751915b97cd6dc864457d4c87037fbd9bd77d40a59b6d8",
     "99736d97561837cc2826dd25f6f1aef10539606937a7f934c1a2a482daa78d23"},
    {8388613, 262144, "df318662947b55b2bb37ae60a375d261be6e3b778125db431ea5987553b6b687",
     "1244daae815c66e6883c5fcc7caadf23183fda3a015a52378bc91c4ff8961ae6"},
    {5000001, 1048576, "22d7a05b53b12996512c33f3ea401b7d0112f5085eff494bd860147ee9b7d05b",
     "640e6a5592dfe306629ccb7778f26f6fed24d048f921d95ae3f6b183522d7f35"},
    {5000001, 4194304, "22d7a05b53b12996512c33f3ea401b7d0112f5085eff494bd860147ee9b7d05b",
     "22d7a05b53b12996512c33f3ea401b7d0112f5085eff494bd860147ee9b7d05b"},
    {5000001, 8388608, "22d7a05b53b12996512c33f3ea401b7d0112f5085eff494bd860147ee9b7d05b",
     "73acb550cfd1f21856c6f4d50d4d863b3d5a74d9bfdf133f42fec78673247cd4"},
    {4194305, 2097152, "f5a4ed5970ed13b2117d9f25b6710c671b326992ec8f10ede2a02d3e4b97d90b",
     "36e06c9b6363c768ed20038e1ef229eaab957908dae51fcb96b1d7df3d325c11"},
    /* clang-format on */
};

/* The content formula of merkle_answers.py. */
static uint8_t *content_of(uint64_t size)
{
    uint8_t *bytes = xmalloc(size + 1);
    for (uint64_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(((uint32_t)i * UINT32_C(2654435761)) >> 24) ^ (uint8_t)(i >> 14);
    return bytes;
}

static uint8_t *leaves_of(const struct geometry *g, const uint8_t *content)
{
    uint8_t *leaves = xmalloc(g->blocks * HASH_SIZE + 1);
    const uint8_t **blocks = xcalloc(g->blocks + 1, sizeof *blocks);
    for (uint64_t i = 0; i < g->blocks; i++)
        blocks[i] = content + i * BLOCK_SIZE;
    if (g->blocks > 0)
        merkle_leaves(leaves, blocks, g->blocks, geometry_block_size(g, g->blocks - 1));
    free(blocks);
    return leaves;
}

static struct geometry geometry_with(uint64_t size, uint32_t piece_size)
{
    struct geometry g = {.size = size, .piece_size = piece_size};
    g.piece_blocks = piece_size / BLOCK_SIZE;
    g.blocks = (size + BLOCK_SIZE - 1) / BLOCK_SIZE;
    g.pieces = (uint32_t)((size + piece_size - 1) / piece_size);
    return g;
}

static void assert_hash(const uint8_t *hash, const char *expected)
{
    char text[2 * HASH_SIZE + 1];
    hex_encode(text, hash, HASH_SIZE);
    assert_string_equal(text, expected);
}

static void roots_and_piece_layers_are_libtorrents(void **state)
{
    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        struct geometry g = geometry_with(answers[i].size, answers[i].piece_size);
        uint8_t *content = content_of(g.size), *leaves = leaves_of(&g, content);
        uint8_t *layer = xmalloc((size_t)g.pieces * HASH_SIZE + 1);
        uint8_t root[HASH_SIZE], digest[HASH_SIZE];

        if (answers[i].piece_size == 262144) {
            struct geometry chosen = geometry_of(g.size);
            assert_int_equal(chosen.piece_size, g.piece_size);
            assert_int_equal(chosen.piece_blocks, g.piece_blocks);
            assert_int_equal(chosen.blocks, g.blocks);
            assert_int_equal(chosen.pieces, g.pieces);
        }
        merkle_root_of_leaves(root, layer, &g, leaves);
        assert_hash(root, answers[i].root);
        sha256(digest, layer, (size_t)g.pieces * HASH_SIZE);
        assert_hash(digest, answers[i].layer);
        merkle_root_of_leaves(root, NULL, &g, leaves);
        assert_hash(root, answers[i].root);
        merkle_root(root, &g, layer);
        assert_hash(root, answers[i].root);
        if (g.pieces == 1)
            assert_memory_equal(root, layer, HASH_SIZE);
        free(layer);
        free(leaves);
        free(content);
    }
}

static void a_changed_byte_changes_its_piece_only(void **state)
{
    struct geometry g = geometry_of(3 * 262144 + 17);
    uint8_t *content = content_of(g.size), layer[4 * HASH_SIZE], changed[4 * HASH_SIZE];
    uint8_t root[HASH_SIZE], other[HASH_SIZE];
    uint8_t *leaves = leaves_of(&g, content);
    merkle_root_of_leaves(root, layer, &g, leaves);
    free(leaves);
    content[262144 + 5] ^= 1;
    leaves = leaves_of(&g, content);
    merkle_root_of_leaves(other, changed, &g, leaves);
    assert_memory_not_equal(root, other, HASH_SIZE);
    for (unsigned piece = 0; piece < 4; piece++)
        assert_int_equal(memcmp(layer + 32 * piece, changed + 32 * piece, 32) != 0, piece == 1);
    free(leaves);
    free(content);
}

static void every_lane_count_gives_what_openssl_gives(void **state)
{
    enum { MESSAGES = 11, LONGEST = 16384 };
    uint8_t *bytes = content_of((uint64_t)MESSAGES * (LONGEST + 3));
    const uint8_t *messages[MESSAGES];
    uint8_t expected[32 * MESSAGES], digests[32 * MESSAGES];

    for (size_t i = 0; i < MESSAGES; i++)
        messages[i] = bytes + i * (LONGEST + 3); /* unaligned on purpose */
    for (size_t size = 0; size <= LONGEST; size += size < 200 || size >= LONGEST - 200 ? 1 : 977) {
        sha256_many_openssl(expected, messages, MESSAGES, size);
        for (unsigned lanes = 1; lanes <= 4; lanes *= 2) {
            for (size_t count = MESSAGES - 4; count <= MESSAGES; count++) {
                memset(digests, 0, sizeof digests);
                if (!sha256_many_lanes(digests, messages, count, size, lanes))
                    break; /* no such processor: nothing to compare */
                assert_memory_equal(digests, expected, 32 * count);
            }
        }
        memset(digests, 0, sizeof digests);
        sha256_many(digests, messages, MESSAGES, size);
        assert_memory_equal(digests, expected, sizeof digests);
    }
    free(bytes);
}

/* Sizes around every border of the padding, and blocks. */
static const size_t many_sizes[] = {0,   1,   3,   54,  55,  56,  63,   64,   65,    111,   119,
                                    120, 127, 128, 183, 184, 192, 1000, 4096, 16383, 16384, 16385};

static void any_count_gives_what_openssl_gives_in_every_way(void **state)
{
    enum { MESSAGES = 40, STEP = 16385 + 6 };
    uint8_t *bytes = content_of((uint64_t)MESSAGES * STEP);
    const uint8_t *messages[MESSAGES];
    uint8_t expected[32 * MESSAGES], digests[32 * MESSAGES + 1];
    bool wide = true;

    for (size_t i = 0; i < MESSAGES; i++)
        messages[i] = bytes + i * STEP; /* unaligned, each in its own way */
    for (size_t s = 0; s < sizeof many_sizes / sizeof many_sizes[0]; s++) {
        size_t size = many_sizes[s];
        sha256_many_openssl(expected, messages, MESSAGES, size);
        for (size_t count = 1; count <= MESSAGES; count++) {
            /* 0 as it is chosen, 1 2 4 lanes of the SHA extensions, then AVX-512 for at least so many */
            for (unsigned way = 0; way <= 4 + 17; way++) {
                if (size > 200 && way > 5 && way % 6 != 0)
                    continue; /* the rest of the ways differ in what they split only */
                memset(digests, 0x5a, sizeof digests);
                if (way == 0)
                    sha256_many(digests, messages, count, size);
                else if (way == 3)
                    continue;
                else if (way <= 4) {
                    if (!sha256_many_lanes(digests, messages, count, size, way))
                        continue;
                } else if (!sha256_many_wide(digests, messages, count, size, way - 4)) {
                    wide = false;
                    break;
                }
                assert_memory_equal(digests, expected, 32 * count);
                assert_int_equal(digests[32 * count], 0x5a); /* not one byte behind them */
            }
        }
    }
    if (!wide)
        print_message("no AVX-512 here: not compared\n");
    free(bytes);
}

static void the_choice_is_made_once_and_within_bounds(void **state)
{
    unsigned least = sha256_wide_least();
    assert_in_range(least, 4, 17);
    assert_int_equal(sha256_wide_least(), least);
}

static void pairs_may_be_replaced_by_their_hashes(void **state)
{
    enum { PAIRS = 150 };
    uint8_t *bytes = content_of(64 * PAIRS), expected[32 * PAIRS];
    const uint8_t *messages[PAIRS];

    for (size_t i = 0; i < PAIRS; i++)
        messages[i] = bytes + 64 * i;
    sha256_many_openssl(expected, messages, PAIRS, 64);
    for (size_t count = 0; count <= PAIRS; count++) {
        uint8_t *copy = content_of(64 * PAIRS);
        sha256_pairs(copy, copy, count);
        assert_memory_equal(copy, expected, 32 * count);
        assert_memory_equal(copy + 64 * count, bytes + 64 * count, 64 * (PAIRS - count));
        free(copy);
    }
    free(bytes);
}

static void leaves_of_any_count_and_tail_are_single_hashes(void **state)
{
    enum { COUNT = 19 };
    static const uint32_t tails[] = {1, 55, 56, 63, 64, 65, 119, 120, 8191, 16383, 16384};
    uint8_t *bytes = content_of(COUNT * BLOCK_SIZE), hashes[COUNT * 32], expected[32];
    const uint8_t *blocks[COUNT];

    for (size_t i = 0; i < COUNT; i++)
        blocks[i] = bytes + i * BLOCK_SIZE;
    for (size_t count = 1; count <= COUNT; count++) {
        for (size_t t = 0; t < sizeof tails / sizeof tails[0]; t++) {
            merkle_leaves(hashes, blocks, count, tails[t]);
            for (size_t i = 0; i < count; i++) {
                sha256_many_openssl(expected, &blocks[i], 1,
                                    i + 1 == count ? tails[t] : BLOCK_SIZE);
                assert_memory_equal(hashes + 32 * i, expected, 32);
            }
        }
    }
    merkle_leaves(hashes, blocks, 0, 1);
    free(bytes);
}

/* The definition, one hash at a time. */
static void slow_subtree(uint8_t root[32], const uint8_t *leaves, uint64_t count, uint64_t width)
{
    uint8_t *level = xcalloc(width, 32);
    memcpy(level, leaves, count * 32);
    for (; width > 1; width /= 2)
        for (uint64_t i = 0; i < width / 2; i++) {
            uint8_t pair[64];
            const uint8_t *message = pair;
            memcpy(pair, level + 64 * i, 64);
            sha256_many_openssl(level + 32 * i, &message, 1, 64);
        }
    memcpy(root, level, 32);
    free(level);
}

static void subtrees_of_any_fill_follow_the_definition(void **state)
{
    uint8_t *leaves = content_of(2048 * 32), root[32], expected[32];
    for (uint64_t width = 1; width <= 2048; width *= 2)
        for (uint64_t count = 0; count <= width; count += width < 64 ? 1 : width / 16 + 1) {
            slow_subtree(expected, leaves, count, width);
            merkle_subtree(root, leaves, count, width);
            assert_memory_equal(root, expected, 32);
        }
    free(leaves);
}

static void large_files_agree_whether_by_pieces_or_at_once(void **state)
{
    static const uint64_t sizes[] = {(UINT64_C(2) << 30) + 1, (UINT64_C(1) << 32) + 77777};
    for (size_t i = 0; i < 2; i++) {
        struct geometry g = geometry_of(sizes[i]);
        uint8_t *leaves = content_of(g.blocks * HASH_SIZE);
        uint8_t *layer = xmalloc((size_t)g.pieces * HASH_SIZE), root[32], other[32];
        merkle_root_of_leaves(root, layer, &g, leaves);
        merkle_root_of_leaves(other, NULL, &g, leaves);
        assert_memory_equal(root, other, 32);
        free(layer);
        free(leaves);
    }
}

static void pieces_grow_with_the_file(void **state)
{
    const uint64_t k = 1024, m = k * k, gi = m * k, t = gi * k;
    const struct {
        uint64_t size;
        uint32_t piece_size, pieces;
    } rows[] = {
        {0, 256 * k, 0},
        {1, 256 * k, 1},
        {256 * k, 256 * k, 1},
        {256 * k + 1, 256 * k, 2},
        {2 * gi, 256 * k, 8192},
        {2 * gi + 1, 512 * k, 4097},
        {4 * gi + 1, m, 4097},
        {8 * gi, m, 8192},
        {16 * gi + 1, 4 * m, 4097},
        {32 * gi + 1, 4 * m, 8193},
        {4 * t, 4 * m, 1048576},
        {4 * t + 1, 8 * m, 524289},
        {FILE_SIZE_MAX, 16 * m, 1048576},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct geometry g = geometry_of(rows[i].size);
        uint64_t first, covered = 0;
        uint32_t count;
        assert_int_equal(g.piece_size, rows[i].piece_size);
        assert_int_equal(g.pieces, rows[i].pieces);
        assert_int_equal(g.piece_blocks, g.piece_size / BLOCK_SIZE);
        if (g.pieces == 0)
            continue;
        geometry_piece(&g, g.pieces - 1, &first, &count);
        covered = (first + count - 1) * BLOCK_SIZE + geometry_block_size(&g, first + count - 1);
        assert_int_equal(covered, rows[i].size);
        assert_int_equal(first + count, g.blocks);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(roots_and_piece_layers_are_libtorrents),
        cmocka_unit_test(a_changed_byte_changes_its_piece_only),
        cmocka_unit_test(every_lane_count_gives_what_openssl_gives),
        cmocka_unit_test(any_count_gives_what_openssl_gives_in_every_way),
        cmocka_unit_test(the_choice_is_made_once_and_within_bounds),
        cmocka_unit_test(pairs_may_be_replaced_by_their_hashes),
        cmocka_unit_test(leaves_of_any_count_and_tail_are_single_hashes),
        cmocka_unit_test(subtrees_of_any_fill_follow_the_definition),
        cmocka_unit_test(large_files_agree_whether_by_pieces_or_at_once),
        cmocka_unit_test(pieces_grow_with_the_file),
    };
    return cmocka_run_group_tests_name("merkle", tests, NULL, NULL);
}
