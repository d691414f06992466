/*
 * Features (NVM Express 1.4, section 5.21): what a guest sets it reads back. Those that a machine of files has no use
 * for (arbitration, coalescing, error recovery) are kept and otherwise disregarded, as the specification allows. None
 * can be saved over a reset.
 */
#include "vmm/nvme/internal.h"

#include <string.h>

#define SAVE          (1u << 31) /* of command dword 10 */
#define NOTHING_SAVED 0x3u       /* Get Features: the capabilities are asked for */
#define CHANGEABLE    0x4u
#define OVER_DEFAULT  343u     /* kelvins; as the identify structure's WCTEMP */
#define DULBE         0x10000u /* errors for deallocated blocks, which are not offered */
#define EVENT_BITS    0x000007ffu
#define ONE_VECTOR    0x0000ffffu
#define NO_COALESCING 0x00010000u

void nvme_features_reset(struct nvme *n)
{
	n->features = (struct nvme_features){.over = OVER_DEFAULT, .write_cache = true};
	atomic_store(&n->write_through, false);
}

uint8_t nvme_critical_warning(const struct nvme *n)
{
	bool hot = n->features.over <= NVME_TEMPERATURE, cold = n->features.under >= NVME_TEMPERATURE;

	return hot || cold ? 0x02 : 0;
}

/* The threshold that command dword 11 selects; NULL: there is none. */
static uint32_t *threshold(struct nvme *n, uint32_t cdw11, bool set)
{
	unsigned sensor = cdw11 >> 16 & 15, side = cdw11 >> 20 & 3;

	/* 0: the composite temperature; setting may speak of all sensors. */
	if ((sensor != 0 && !(set && sensor == 15)) || side > 1)
		return NULL;
	return side ? &n->features.under : &n->features.over;
}

static uint16_t set_threshold(struct nvme *n, uint32_t cdw11)
{
	uint32_t *to = threshold(n, cdw11, true);

	if (!to)
		return NVME_INVALID_FIELD;
	*to = cdw11 & 0xffff;
	if (nvme_critical_warning(n))
		nvme_event(n, NVME_EVENT_TEMPERATURE);
	return NVME_SUCCESS;
}

static uint32_t queue_numbers(const struct nvme *n)
{
	return (n->config.queues - 1) << 16 | (n->config.queues - 1);
}

static uint16_t set_queues(struct nvme *n, uint32_t cdw11, uint32_t *result)
{
	if (n->queues_set)
		return NVME_SEQUENCE_ERROR;
	if ((cdw11 & 0xffff) == 0xffff || cdw11 >> 16 == 0xffff)
		return NVME_INVALID_FIELD;
	*result = queue_numbers(n);
	return NVME_SUCCESS;
}

static uint16_t set_vector(struct nvme *n, uint32_t cdw11)
{
	if ((cdw11 & ONE_VECTOR) > n->config.queues)
		return NVME_INVALID_FIELD;
	n->features.uncoalesced[cdw11 & ONE_VECTOR] = cdw11 & NO_COALESCING;
	return NVME_SUCCESS;
}

uint16_t nvme_set_features(struct nvme *n, const struct nvme_command *c, uint32_t *result)
{
	struct nvme_features *f = &n->features;
	uint32_t value = c->cdw11;

	if (c->cdw10 & SAVE)
		return NVME_NOT_SAVEABLE;
	switch (c->cdw10 & 0xff) {
	case NVME_FEATURE_ARBITRATION:
		f->arbitration = value & 0xffffff07;
		return NVME_SUCCESS;
	case NVME_FEATURE_POWER:
		return value & 0x1f ? NVME_INVALID_FIELD : NVME_SUCCESS;
	case NVME_FEATURE_TEMPERATURE:
		return set_threshold(n, value);
	case NVME_FEATURE_ERROR_RECOVERY:
		if (value & DULBE)
			return NVME_INVALID_FIELD;
		f->error_recovery = value & 0xffff;
		return NVME_SUCCESS;
	case NVME_FEATURE_WRITE_CACHE:
		f->write_cache = value & 1;
		atomic_store(&n->write_through, !f->write_cache);
		return NVME_SUCCESS;
	case NVME_FEATURE_QUEUES:
		return set_queues(n, value, result);
	case NVME_FEATURE_COALESCING:
		f->coalescing = value & 0xffff;
		return NVME_SUCCESS;
	case NVME_FEATURE_VECTOR:
		return set_vector(n, value);
	case NVME_FEATURE_ATOMICITY:
		f->atomicity = value & 1;
		return NVME_SUCCESS;
	case NVME_FEATURE_EVENTS:
		f->events = value & EVENT_BITS;
		return NVME_SUCCESS;
	default:
		return NVME_INVALID_FIELD;
	}
}

/* The present value of feature @id; of @cdw11 says which. */
static uint16_t present(struct nvme *n, unsigned id, uint32_t cdw11, uint32_t *result)
{
	const struct nvme_features *f = &n->features;
	const uint32_t *from;

	switch (id) {
	case NVME_FEATURE_ARBITRATION:
		*result = f->arbitration;
		return NVME_SUCCESS;
	case NVME_FEATURE_POWER:
		*result = 0;
		return NVME_SUCCESS;
	case NVME_FEATURE_TEMPERATURE:
		from = threshold(n, cdw11, false);
		if (!from)
			return NVME_INVALID_FIELD;
		*result = *from;
		return NVME_SUCCESS;
	case NVME_FEATURE_ERROR_RECOVERY:
		*result = f->error_recovery;
		return NVME_SUCCESS;
	case NVME_FEATURE_WRITE_CACHE:
		*result = f->write_cache;
		return NVME_SUCCESS;
	case NVME_FEATURE_QUEUES:
		*result = queue_numbers(n);
		return NVME_SUCCESS;
	case NVME_FEATURE_COALESCING:
		*result = f->coalescing;
		return NVME_SUCCESS;
	case NVME_FEATURE_VECTOR:
		if ((cdw11 & ONE_VECTOR) > n->config.queues)
			return NVME_INVALID_FIELD;
		*result = (cdw11 & ONE_VECTOR) | (f->uncoalesced[cdw11 & ONE_VECTOR] ? NO_COALESCING : 0);
		return NVME_SUCCESS;
	case NVME_FEATURE_ATOMICITY:
		*result = f->atomicity;
		return NVME_SUCCESS;
	case NVME_FEATURE_EVENTS:
		*result = f->events;
		return NVME_SUCCESS;
	default:
		return NVME_INVALID_FIELD;
	}
}

uint16_t nvme_get_features(struct nvme *n, const struct nvme_command *c, uint32_t *result)
{
	unsigned id = c->cdw10 & 0xff, select = c->cdw10 >> 8 & 7;
	struct nvme_features now = n->features;
	uint16_t status;

	if (select > NOTHING_SAVED)
		return NVME_INVALID_FIELD;
	if (select == 1 || select == 2) { /* the default, which is also what is saved */
		n->features = (struct nvme_features){.over = OVER_DEFAULT, .write_cache = true};
		status = present(n, id, c->cdw11, result);
		n->features = now;
		return status;
	}
	status = present(n, id, c->cdw11, result);
	if (select == NOTHING_SAVED && status == NVME_SUCCESS)
		*result = id == NVME_FEATURE_POWER ? 0 : CHANGEABLE;
	return status;
}
