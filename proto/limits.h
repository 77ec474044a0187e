/* Every maximum and timeout that a wire can meet, with its reason. Nothing else may invent one.
 *
 * Three places that do not know this header name what belongs to their formats: base/name.h (lengths of names, depth),
 * base/swarm_url.h, and crypto/ (identity.h, key.c, tls_context.c, password.c: sizes of certificates, requests, chains, keys and
 * exponents; merkle.h: the largest content).
 *
 * Sizes are bytes unless named otherwise; times are nanoseconds on the monotonic clock. */
#ifndef PROTO_LIMITS_H
#define PROTO_LIMITS_H

#include "base/clock.h"

/* --- framing, all protocols --------------------------------------------------------------------------- */
#define LIMIT_FRAME_MESSAGE                                                                        \
    (1u << 20) /* a packed message: a page of a large directory, a batch of catalogue changes */
#define LIMIT_FRAME_PAYLOAD                                                                        \
    (1u << 20) /* raw bytes behind it: hashes of 32768 nodes; a block is only 16 KiB */
#define LIMIT_STRANGER_FRAME                                                                       \
    (64u << 10) /* a packed message before the other end is known to be a member */
#define LIMIT_SEND_QUEUE                                                                           \
    (8u << 20) /* bytes queued to one receiver who does not read: then the channel ends */
#define LIMIT_FRAME_FDS 2 /* file descriptors beside one local message: data file and bitmap */
#define LIMIT_FIRST_ROOM                                                                           \
    4096 /* memory that a claimed length gets at once; more follows the bytes */
#define LIMIT_ARENA_FLOOR                                                                          \
    (192u << 10) /* memory that unpacking a message may take, however short ... */
#define LIMIT_ARENA_FACTOR                                                                         \
    16u /* ... and for each of its bytes: fields of 2 bytes make pointers of 8 */
#define LIMIT_TURN_BYTES                                                                           \
    (1u << 20)                /* read from one link before the others of its loop get their turn */
#define LIMIT_TURN_FRAMES 512 /* the same, in small frames: a megabyte holds 60000 empty ones */
#define LIMIT_TURN_NS     (2 * NS_PER_MS) /* the same, in time, where a link has a budget */
#define LIMIT_DEBT_NS                                                                              \
    (5 * NS_PER_S) /* the longest wait for a budget: time limits must not run out over it */

/* --- connections -------------------------------------------------------------------------------------- */
#define LIMIT_HANDSHAKE_NS (10 * NS_PER_S)  /* TLS; 100 times what a slow machine far away needs */
#define LIMIT_HELLO_NS     (10 * NS_PER_S)  /* from the end of TLS to the first message */
#define LIMIT_LOGIN_NS     (120 * NS_PER_S) /* a connection without certificate lives no longer */
#define LIMIT_PEER_IDLE_NS                                                                         \
    (120 * NS_PER_S) /* a peer link without any frame; PING goes at a third */
#define LIMIT_TRACKER_IDLE_NS                                                                      \
    (180 * NS_PER_S) /* a member's link to the tracker; PING goes at a third */
#define LIMIT_FINISH_NS                                                                            \
    (5 * NS_PER_S) /* a last word that is not taken: the channel ends without it */
#define LIMIT_CONNECT_NS        (8 * NS_PER_S) /* dialling one address */
#define LIMIT_HALF_OPEN         64 /* handshakes under way on one listener; each costs 2.6 ms of RSA */
#define LIMIT_HALF_OPEN_SOURCE  8        /* of which from one address */
#define LIMIT_HANDSHAKE_FAIR_NS NS_PER_S /* a handshake may take so long although others wait */
#define LIMIT_WAITING           1024 /* accepted by the tracker, and waiting for one of those places */
#define LIMIT_ACCEPT_BURST      64 /* connections that the tracker takes in one round of its loop */
#define LIMIT_HANDSHAKE_THREADS 2 /* of a daemon: strangers' RSA stays off the threads that serve */
#define LIMIT_KNOCKS            256 /* handshakes that one address may begin at once: 0.7 s of RSA */
#define LIMIT_KNOCK_NS          (NS_PER_S / 16) /* and one more each: 4 % of a core */
#define LIMIT_KNOCK_FINE        3 /* handshakes that one without a good end costs besides */
#define LIMIT_KNOCK_SOURCES                                                                        \
    4096 /* addresses of which this is remembered: 160 bytes each; and accounts */
#define LIMIT_KNOCK_SUSPECT_NS (60 * NS_PER_S) /* after such a one its source shares a budget ... */
#define LIMIT_KNOCK_TRUST_NS   (3600 * NS_PER_S) /* where a member came from, others may live, too */
#define LIMIT_KNOCK_SUSPECTS_NS                                                                    \
    (NS_PER_S / 16)                     /* ... with all such sources: 4 % of a core for them */
#define LIMIT_PEER_LINKS            512 /* links that one daemon serves, and as many that it fetches on */
#define LIMIT_PEER_LINKS_DEVICE     4 /* of which from one device, so a stuck one can be replaced */
#define LIMIT_PEER_LINKS_ACCOUNT    32    /* of which from the devices of one account */
#define LIMIT_TRACKER_LINKS         16384 /* connections to one tracker: 14 to 30 KiB each */
#define LIMIT_TRACKER_LINKS_SOURCE  512   /* of which from one address (an office behind one NAT) */
#define LIMIT_TRACKER_LINKS_ACCOUNT 64    /* of which from the devices of one account */
#define LIMIT_LOCAL_CLIENTS         64    /* p2pfs and p2pctl processes on one daemon */
#define LIMIT_DESCRIPTORS_KEPT                                                                     \
    64 /* descriptors that strangers' connections leave for files, databases, local clients */
#define LIMIT_STALL_NS                                                                             \
    (60 * NS_PER_S) /* bytes are queued for a receiver and it takes none: the link ends */
#define LIMIT_CERTIFICATE_GRACE_S 300 /* a link outlives its certificate by this: clocks differ */

/* --- what handling their input may cost: of each second of a loop's thread, and at once ------------------ */
#define LIMIT_PEER_INPUT_NS                                                                        \
    (50 * NS_PER_MS) /* a link that is served: 20 times what 1 Gbit/s needs */
#define LIMIT_PEER_BURST_NS     (100 * NS_PER_MS)
#define LIMIT_PEER_ACCOUNT_NS   (100 * NS_PER_MS) /* all links of one account: it has 32 of them */
#define LIMIT_MEMBER_INPUT_NS   (100 * NS_PER_MS) /* a member at the tracker */
#define LIMIT_MEMBER_ACCOUNT_NS (200 * NS_PER_MS) /* all members of one account */
#define LIMIT_MEMBER_BURST_NS   NS_PER_S /* 200000 files announced from scratch take half of it */
#define LIMIT_SPENT_ACCOUNTS                                                                       \
    4096 /* accounts of which it is remembered that links of theirs used up their bursts */
#define LIMIT_SPENT_NS                                                                             \
    (10 * NS_PER_S) /* ... for so long at most: twice what it takes to pay the largest burst */
#define LIMIT_STORAGE_PART                                                                         \
    2 /* what the storage's thread does for a member counts half: 20 % of a core */
#define LIMIT_GRANT_NS                                                                             \
    (20 *                                                                                          \
     NS_PER_MS) /* what a change of rights costs besides, as everybody hears of it: 50 at once, then 5 a second */
#define LIMIT_RENEW_NS NS_PER_S /* between two looks at what a member may see now ... */
#define LIMIT_RENEW_FEED_NS                                                                        \
    (3 * NS_PER_S) /* ... and between two beginnings of its catalogue, unless it has all of it */
#define LIMIT_STRANGER_INPUT_NS (10 * NS_PER_MS) /* who has no certificate */
#define LIMIT_STRANGER_BURST_NS (20 * NS_PER_MS)

#define LIMIT_ANSWERS_AHEAD                                                                        \
    (3u << 20) /* memory of answers queued for who does not read them; then requests wait */
#define LIMIT_ANSWERS_POOL                                                                         \
    (16u << 20) /* of all links of one thread: above half of it each has its share, ... */
#define LIMIT_ANSWERS_SHARE (32u << 10) /* ... this at the least */
#define LIMIT_PEER_ANSWERS_POOL                                                                    \
    (8u << 20) /* the pool of the links that a daemon serves: they have that of blocks besides */

/* --- the peer protocol -------------------------------------------------------------------------------- */
#define LIMIT_OPEN_FILES         4096  /* files open on one link ... */
#define LIMIT_OPEN_FILES_ACCOUNT 16384 /* ... and on all links of one account: 6 MiB */
#define LIMIT_REQUEST_BLOCKS     1024  /* blocks in one Request: 16 MiB */
#define LIMIT_QUEUED_BLOCKS                                                                        \
    4096 /* blocks asked for and not yet served on one link: 64 MiB, the product
                                                of 1 Gbit/s and half a second */
#define LIMIT_HASHES      8192 /* hashes in one answer: 256 KiB */
#define LIMIT_HAVE_PIECES 4096 /* pieces in one Have */
#define LIMIT_HELLO       1024 /* bytes of a packed Hello, the first frame of a link */
#define LIMIT_DIAL_BACKS  32   /* that one daemon has under way for others */
#define LIMIT_LINK_READS  64   /* reads from disk under way for one link: 16 MiB at most */
#define LIMIT_LINK_HASHES 32   /* requests for hashes under way on one link; more are rejected */
#define LIMIT_LINK_OPENS                                                                           \
    8 /* contents being opened for one link; more wait in a list of LIMIT_OPEN_FILES */
#define LIMIT_URGENT_AHEAD                                                                         \
    (1u << 20) /* bytes of demanded blocks that are read, or wait in one link's channel */
#define LIMIT_BLOCKS_POOL                                                                          \
    (16u << 20) /* bytes of blocks read for all links and not sent: above half of it, shares ... */
#define LIMIT_BLOCKS_SHARE (64u << 10) /* ... this at the least: four blocks */
#define LIMIT_HASHES_AHEAD                                                                         \
    (2u << 20) /* answers with hashes that wait for a fetcher who does not read */
#define LIMIT_BLOCKS_HELD                                                                          \
    2048 /* blocks on their way to the store: 32 MiB; above, links are not read */
#define LIMIT_BLOCKS_UNPROVEN                                                                      \
    1024 /* of which may wait for their hashes: a server may send those late, or never */
#define LIMIT_DEVICES_KNOWN                                                                        \
    65536 /* devices that a fetcher remembers: 200 bytes each; bans included */
#define LIMIT_BARRED            65536 /* accounts of which a server remembers when their rights changed */
#define LIMIT_STORE_DESCRIPTORS 512 /* of contents that nobody reads at the moment */
#define LIMIT_STORE_IDLE                                                                           \
    2048 /* contents that stay open without a user: who opens many takes no more */
#define LIMIT_STORE_IDLE_BYTES (64u << 20) /* memory that these may take */
#define LIMIT_STORE_HASHES     (64u << 20) /* block hashes in memory, of all contents together */
#define LIMIT_GAPS_TOLD        16 /* Rejects for one Request; what is behind them is refused in one go */
#define LIMIT_AGENT            64  /* bytes of a program's name and version in a Hello */
#define LIMIT_REASON           256 /* bytes of a reason for people */
#define LIMIT_REQUEST_NS                                                                           \
    (20 * NS_PER_S) /* a requested block that has not come: asked for elsewhere */
#define LIMIT_BROKEN_CLAIMS                                                                        \
    8 /* rejects of pieces that were announced, before the claims are ignored */
#define LIMIT_BAN_NS (3600 * NS_PER_S) /* a device that did harm on purpose is not spoken to */
#define LIMIT_STRIKES                                                                              \
    3 /* breaches of the protocol by one device, any of which could be a mistake, within ... */
#define LIMIT_STRIKES_NS (600 * NS_PER_S) /* ... this, and it counts as on purpose */
#define LIMIT_BANS       4096             /* devices of which that is remembered */

/* --- accounts: what who has no certificate can ask for ------------------------------------------------------ */
#define LIMIT_ACCOUNTS                                                                             \
    100000 /* in one swarm: an open registration is not endless; 200 bytes each */
#define LIMIT_ACCOUNT_DEVICES 128 /* of one account: twice what may be connected; 300 bytes each */
#define LIMIT_ACCOUNT_INVITES 256 /* of one account that are good at one time */
#define LIMIT_INVITE_USES     100000        /* of one invite */
#define LIMIT_INVITE_S        (366 * 86400) /* the longest life of one */
#define LIMIT_UNVERIFIED_S    (7 * 86400) /* an account whose address is not verified by then goes */
#define LIMIT_ATTEMPTS                                                                             \
    512 /* registrations, log ins and the like under way: each holds up to 10 KiB */
#define LIMIT_ATTEMPTS_MEMBER 8   /* of which of one member; a stranger has one */
#define LIMIT_PASSWORD_JOBS   128 /* passwords waiting for Argon2: about 1.5 s of work on two cores */
#define LIMIT_TRIES_FREE                                                                           \
    3 /* wrong passwords for a name from one source: typing errors cost nothing; */
#define LIMIT_TRY_FIRST_NS (1 * NS_PER_S) /* then one second, two, four ... */
#define LIMIT_TRY_LONGEST_NS                                                                       \
    (60 * NS_PER_S) /* longer would lock out the owner in the same office */
#define LIMIT_TRY_FORGET_NS (3600 * NS_PER_S) /* a name that was left alone starts anew */
#define LIMIT_TRIES_SOURCE  256 /* tries that a source has in hand: an office behind one address */
#define LIMIT_TRY_NS        (250 * NS_PER_MS) /* and one more each */
#define LIMIT_TRIES_KEPT    65536 /* names and sources of which that is remembered, each */
#define LIMIT_COST_WRONG                                                                           \
    3 /* tries that a wrong guess costs its source on top: one a second in the long run */
#define LIMIT_COST_REGISTER 2                /* tries that registering costs: it writes */
#define LIMIT_COST_VERIFY   2                /* a code from a mail: it can be guessed at */
#define LIMIT_COST_RESET    4                /* a mail to somebody */
#define LIMIT_MAILS_BURST   8                /* mails to one account in a burst ... */
#define LIMIT_MAIL_AGAIN_NS (600 * NS_PER_S) /* ... then one each */
#define LIMIT_MAILS         10000            /* mails in the queue; more are not taken in */
#define LIMIT_MAIL_CODE     64               /* bytes of a code from a mail, as it may come back */
#define LIMIT_SECOND_FACTOR 32               /* bytes of a second factor's code, with blanks */
#define LIMIT_AUDIT_KEPT    100000           /* rows of the audit log ... */
#define LIMIT_AUDIT_REFUSED                                                                        \
    20000 /* ... and of refusals, so that who guesses does not push out the rest */

/* --- the tracker protocol ------------------------------------------------------------------------------ */
#define LIMIT_ANNOUNCE_FILES 1024   /* files in one Announce */
#define LIMIT_ANNOUNCED      200000 /* files that one device may hold announced */
#define LIMIT_ANNOUNCED_UNSEEN                                                                     \
    32768 /* that the devices of one account hold announced of what is in no catalogue, or in no folder that they may
             see: published later, or made up; 11 MiB */
#define LIMIT_ANNOUNCED_UNSEEN_PIECES                                                              \
    (1u << 20) /* pieces of the incomplete ones among these: 2 MiB of counts */
#define LIMIT_ANNOUNCED_PIECES                                                                     \
    (16u << 20)              /* pieces of its incomplete files: 2 MiB of maps, 32 MiB of counts */
#define LIMIT_ADDRESSES   16 /* addresses of one device */
#define LIMIT_ADDRESS     64 /* bytes of one: "[v6%scope]:port" */
#define LIMIT_DIALS_ASKED 64 /* dial-backs that one member may ask for in a second */
#define LIMIT_PEERS                                                                                \
    30 /* peers in one answer: 16 to 30 neighbours spread a file as well as all would */
#define LIMIT_WANTED 4096 /* files for which one device waits for peers ... */
#define LIMIT_WANTED_ACCOUNT                                                                       \
    16384                        /* ... and all devices of one account: 5 MiB if they are made up */
#define LIMIT_OPS     256        /* catalogue operations in one message */
#define LIMIT_CHANGES 512        /* catalogue entries in one message */
#define LIMIT_ENTRIES (4u << 20) /* entries in one swarm's catalogue */
#define LIMIT_ENTRIES_ACCOUNT                                                                      \
    (1u << 20) /* of which one account's, unless the tracker's settings or an admin say otherwise */
#define LIMIT_DIRECTORY                                                                            \
    (1u << 18) /* of which in one directory: 80 MiB of a daemon's memory, and of `ls`s */
#define LIMIT_PASSWORD     1024  /* bytes; longer ones only cost time */
#define LIMIT_PASSWORD_MIN 8     /* bytes; length is all that is asked of a password */
#define LIMIT_EMAIL        254   /* RFC 5321 */
#define LIMIT_SYMLINK      4095  /* bytes of a symbolic link's target: PATH_MAX less the NUL */
#define LIMIT_XATTRS       64    /* extended attributes of one entry */
#define LIMIT_XATTR_NAME   255   /* bytes of a name: XATTR_NAME_MAX of Linux */
#define LIMIT_XATTR_VALUE  8192  /* bytes of a value: more than ext4 takes in its usual layout */
#define LIMIT_XATTRS_BYTES 16384 /* bytes of all names and values of one entry */
#define LIMIT_AUDIT_ROWS   500   /* rows of the audit log in one answer: up to 700 bytes each */
#define LIMIT_REQUESTS     1024  /* unanswered requests of one member */
#define LIMIT_OPS_KEPT     4096 /* answers kept for each device, for operations that are sent again */
#define LIMIT_SIGNERS      64 /* signing keys of one device: it has one, unless its file was lost */
#define LIMIT_FEED_BEHIND                                                                          \
    (1u << 20) /* changes waiting for one who does not read: falls behind, and reads on later */
#define LIMIT_COPIES_TOLD 65536 /* pieces for which Peers says how many copies there are */
#define LIMIT_NEWCOMERS   64 /* of one content until they are told of; more replace random ones */
#define LIMIT_CANDIDATES                                                                           \
    1024 /* devices looked at for one answer: bounds its cost in a large swarm */

#define LIMIT_GROUPS         4096 /* in one swarm */
#define LIMIT_ACCOUNT_GROUPS 64   /* of one account: looked at for every folder it is judged in */
#define LIMIT_RULES_SHOWN    4096 /* rules in one answer */
#define LIMIT_FOLDER_RULES                                                                         \
    1024 /* rules of one folder: in memory, and looked at whenever somebody looks into it */
#define LIMIT_GONE_FOLDERS  65536  /* removed folders whose place is remembered */
#define LIMIT_LATE_CONTENTS 262144 /* contents that lost their file and may still be seen */
#define LIMIT_GROUP_LINES   8000   /* groups and memberships in one answer: half a frame */
#define LIMIT_USERS_PAGE    200    /* accounts in one answer */
#define LIMIT_ANSWER_NS                                                                            \
    (60 * NS_PER_S) /* a tracker that is alive answers within seconds, a log in included */
#define LIMIT_TRACKER_ADDRESSES 8 /* addresses of a tracker's name that are tried */
#define LIMIT_CLAIMS                                                                               \
    65536 /* signers' claims that a member remembers, and lines of its history of keys */
#define LIMIT_KEY_LINE    160 /* bytes of one of these lines */
#define LIMIT_KEY_HISTORY ((size_t)LIMIT_CLAIMS * LIMIT_KEY_LINE)
#define LIMIT_VERIFIED_KEPT                                                                        \
    (2u << 20) /* signatures that a member remembers to have verified: up to 150 MB */
#define LIMIT_BAD_LOGGED                                                                           \
    8 /* entries refused by a member that get a line of the log each, in one series */
#define LIMIT_TICKET_GRACE_NS                                                                      \
    (2 *                                                                                           \
     NS_PER_S) /* after rights changed, for a new ticket of who still may: several round trips */

/* --- the local protocol -------------------------------------------------------------------------------- */
#define LIMIT_LIST_ENTRIES  1024  /* entries in one page of a directory */
#define LIMIT_HANDLES       65536 /* open files of one mount */
#define LIMIT_WANTS         65536 /* parked reads of one mount */
#define LIMIT_PATH          16384 /* bytes of a path inside the swarm: 64 levels of 255 */
#define LIMIT_LOCAL_ASKS    64    /* requests of local clients that wait for the tracker, each */
#define LIMIT_LOCAL_FETCHES 64    /* contents of one `get` fetched at the same time */
#define LIMIT_WATCH_QUEUE   (1u << 20) /* bytes waiting for a client that watches and does not read */
#define LIMIT_STATUS_FILES  1000       /* contents in one answer without paths */
#define LIMIT_HEALTH_FILES  1024       /* contents that one command asks the tracker about */
#define LIMIT_STATUS_BELOW  65536 /* entries below directories that one answer adds up: 20 ms */
#define LIMIT_BANS_SHOWN    256   /* bans in one answer */
#define LIMIT_CTL_ANSWER_NS                                                                        \
    (30 * NS_PER_S) /* p2pctl waits for an answer out of p2pd's own memory no longer */
#define LIMIT_CTL_TRACKER_NS                                                                       \
    (150 * NS_PER_S) /* nor for one of the tracker: what LIMIT_LOGIN_NS allows, and dialling */

/* --- what one account and all strangers may hold of a daemon's memory at once -----------------------------------------------
 *
 * The most that LIMIT_PEER_LINKS_ACCOUNT links that ask for all that they may, and read nothing, make a serving p2pd hold beside
 * what it has anyhow, with as many handshakes as there may be:
 *
 *   blocks read and not sent, and buffers kept for more     16 MiB   LIMIT_BLOCKS_POOL
 *   answers and heads of blocks                              8 MiB   LIMIT_PEER_ANSWERS_POOL
 *   blocks asked for, one run each                           6 MiB   LIMIT_QUEUED_BLOCKS of 48 bytes a link
 *   open files                                               6 MiB   LIMIT_OPEN_FILES_ACCOUNT
 *   TLS: state, record buffers, outbox                       8 MiB   256 KiB a link
 *   a message that has come in parts                         2 MiB   LIMIT_STRANGER_FRAME a link
 *   unpacking one message                                    1 MiB   LIMIT_ARENA_FACTOR, one at a time
 *   handshakes under way                                     6 MiB   LIMIT_HALF_OPEN of 96 KiB
 *
 * More accounts that do so share the two pools; each brings its queues, its files and its TLS. */
#define LIMIT_MEMORY_RUN     48u
#define LIMIT_MEMORY_FILE    400u
#define LIMIT_MEMORY_TLS     (256u << 10)
#define LIMIT_MEMORY_SHAKING (96u << 10)
#define LIMIT_MEMORY_ACCOUNT                                                                       \
    (LIMIT_BLOCKS_POOL + LIMIT_PEER_ANSWERS_POOL + LIMIT_OPEN_FILES_ACCOUNT * LIMIT_MEMORY_FILE +  \
     LIMIT_PEER_LINKS_ACCOUNT *                                                                    \
         (LIMIT_QUEUED_BLOCKS * LIMIT_MEMORY_RUN + LIMIT_MEMORY_TLS + LIMIT_STRANGER_FRAME) +      \
     LIMIT_ARENA_FLOOR + LIMIT_ARENA_FACTOR * LIMIT_STRANGER_FRAME +                               \
     LIMIT_HALF_OPEN * LIMIT_MEMORY_SHAKING)
_Static_assert(LIMIT_BLOCKS_HELD * 16384u <= 32u << 20,
               "what a fetcher holds when its disk is late");
_Static_assert(LIMIT_MEMORY_ACCOUNT < 60u << 20,
               "under attack a process grows by less than 64 MiB");

#endif
