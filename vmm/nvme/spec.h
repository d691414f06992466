/*
 * Numbers of NVM Express 1.4 that the controller uses: registers, commands, status codes, the structures that lie in
 * memory. Sections and figures are those of that revision; all of it is little-endian.
 */
#ifndef GLINT_VMM_NVME_SPEC_H
#define GLINT_VMM_NVME_SPEC_H

#include <stdint.h>

/* Registers (3.1). */
#define NVME_CAP       0x00
#define NVME_VS        0x08
#define NVME_INTMS     0x0c
#define NVME_INTMC     0x10
#define NVME_CC        0x14
#define NVME_CSTS      0x1c
#define NVME_AQA       0x24
#define NVME_ASQ       0x28
#define NVME_ACQ       0x30
#define NVME_DOORBELLS 0x1000

#define NVME_VERSION 0x00010400u

/* Controller capabilities (3.1.1). */
#define NVME_CAP_CONTIGUOUS (1ull << 16)   /* queues must be */
#define NVME_CAP_TIMEOUT    (120ull << 24) /* of a change of CSTS.RDY, in 500 ms */
#define NVME_CAP_NVM        (1ull << 37)   /* the NVM command set */

/* Controller configuration (3.1.5). */
#define NVME_CC_ENABLE        0x00000001u
#define NVME_CC_SETTINGS      0x00003ff0u /* command set, page size, arbitration: all 0 */
#define NVME_CC_SHUTDOWN      0x0000c000u
#define NVME_CC_ENTRY_SIZES   0x00ff0000u
#define NVME_CC_ENTRIES_64_16 0x00460000u
#define NVME_CC_BITS          0x00fffff1u

/* Controller status (3.1.6). */
#define NVME_CSTS_READY         0x1u
#define NVME_CSTS_FATAL         0x2u
#define NVME_CSTS_SHUTTING_DOWN 0x4u
#define NVME_CSTS_SHUT_DOWN     0x8u
#define NVME_CSTS_SHUTDOWN      0xcu

/* A submission queue entry (4.2). */
struct nvme_command {
	uint8_t opcode;
	uint8_t flags; /* fused operation in 1:0, how data is named in 7:6: both 0 */
	uint16_t cid;
	uint32_t nsid;
	uint32_t cdw2, cdw3;
	uint64_t metadata;
	uint64_t prp1, prp2;
	uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};
static_assert(sizeof(struct nvme_command) == 64);

/* A completion queue entry (4.6). */
struct nvme_completion {
	uint32_t result, reserved;
	uint16_t sq_head, sq_id;
	uint16_t cid, status; /* bit 0: the phase tag */
};
static_assert(sizeof(struct nvme_completion) == 16);

/* Admin commands (5). */
enum {
	NVME_DELETE_SQ = 0x00,
	NVME_CREATE_SQ = 0x01,
	NVME_GET_LOG = 0x02,
	NVME_DELETE_CQ = 0x04,
	NVME_CREATE_CQ = 0x05,
	NVME_IDENTIFY = 0x06,
	NVME_ABORT = 0x08,
	NVME_SET_FEATURES = 0x09,
	NVME_GET_FEATURES = 0x0a,
	NVME_ASYNC_EVENT = 0x0c,
	NVME_KEEP_ALIVE = 0x18,
	NVME_DOORBELL_BUFFER = 0x7c,
};

/* NVM commands (6). */
enum { NVME_FLUSH = 0x00, NVME_WRITE = 0x01, NVME_READ = 0x02, NVME_WRITE_ZEROES = 0x08, NVME_DATASET = 0x09 };

#define NVME_FUA                (1u << 30) /* of command dword 12 */
#define NVME_DEALLOCATE         (1u << 25) /* of write zeroes' */
#define NVME_DATASET_DEALLOCATE (1u << 2)  /* of command dword 11 */
#define NVME_NSID_ALL           0xffffffffu

struct nvme_range {
	uint32_t attributes, blocks;
	uint64_t block;
};

/*
 * Status (4.6.1): code in 7:0, its type in 10:8; with "do not retry" (bit 14) where the same command would fail again.
 * NVME_PENDING is none: the completion comes later.
 */
#define NVME_DNR(status) (0x4000 | (status))
enum {
	NVME_SUCCESS = 0,
	NVME_INVALID_OPCODE = NVME_DNR(0x001),
	NVME_INVALID_FIELD = NVME_DNR(0x002),
	NVME_TRANSFER_ERROR = NVME_DNR(0x004),
	NVME_INTERNAL_ERROR = 0x006,
	NVME_ABORT_REQUESTED = 0x007,
	NVME_ABORTED_BY_DELETION = 0x008,
	NVME_INVALID_NAMESPACE = NVME_DNR(0x00b),
	NVME_SEQUENCE_ERROR = NVME_DNR(0x00c),
	NVME_INVALID_PRP_OFFSET = NVME_DNR(0x013),
	NVME_WRITE_PROTECTED = NVME_DNR(0x020),
	NVME_LBA_OUT_OF_RANGE = NVME_DNR(0x080),
	NVME_CAPACITY_EXCEEDED = NVME_DNR(0x081),
	NVME_INVALID_CQ = NVME_DNR(0x100),
	NVME_INVALID_QUEUE_ID = NVME_DNR(0x101),
	NVME_INVALID_QUEUE_SIZE = NVME_DNR(0x102),
	NVME_TOO_MANY_EVENTS = NVME_DNR(0x105),
	NVME_INVALID_VECTOR = NVME_DNR(0x108),
	NVME_INVALID_LOG = NVME_DNR(0x109),
	NVME_INVALID_QUEUE_DELETION = NVME_DNR(0x10c),
	NVME_NOT_SAVEABLE = NVME_DNR(0x10d),
	NVME_WRITE_FAULT = 0x280,
	NVME_READ_ERROR = 0x281,
	NVME_PENDING = 0xffff,
};

/* Features (5.21.1). */
enum {
	NVME_FEATURE_ARBITRATION = 0x01,
	NVME_FEATURE_POWER = 0x02,
	NVME_FEATURE_TEMPERATURE = 0x04,
	NVME_FEATURE_ERROR_RECOVERY = 0x05,
	NVME_FEATURE_WRITE_CACHE = 0x06,
	NVME_FEATURE_QUEUES = 0x07,
	NVME_FEATURE_COALESCING = 0x08,
	NVME_FEATURE_VECTOR = 0x09,
	NVME_FEATURE_ATOMICITY = 0x0a,
	NVME_FEATURE_EVENTS = 0x0b,
};

/* Log pages (5.14.1). */
enum { NVME_LOG_ERRORS = 0x01, NVME_LOG_HEALTH = 0x02, NVME_LOG_FIRMWARE = 0x03, NVME_LOG_NAMESPACES = 0x04 };

/* Asynchronous events (5.2): the type in 2:0 of the result, what happened in 15:8, the log page in 23:16. */
#define NVME_EVENT_BAD_REGISTER        0x010000u /* a doorbell of no queue */
#define NVME_EVENT_BAD_VALUE           0x010100u /* a doorbell's value beyond its queue */
#define NVME_EVENT_TEMPERATURE         0x020101u
#define NVME_EVENT_NAMESPACE           0x040002u
#define NVME_EVENTS_HEALTH_TEMPERATURE 0x02u /* bits of the feature */
#define NVME_EVENTS_NAMESPACE          0x100u

#endif
