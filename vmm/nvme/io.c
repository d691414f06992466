/*
 * The NVM command set (NVM Express 1.4, section 6): what a command asks of the drive, and how it ends.
 *
 *     nvme_io_begin() -> checks -> drive_submit() -> done() -> [the next range, or the read behind its flush] -> end()
 *
 * A request that failed and is to be held is kept as its command, and begins again from there when the machine resumes;
 * what is done twice then is the same twice. Touches guest memory by translated addresses alone.
 */
#include "vmm/nvme/internal.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

static struct drive *drive_of(const struct nvme_request *r)
{
	return r->cq->nvme->config.drive;
}

static struct nvme_request *request_of(struct drive_request *drive)
{
	return (struct nvme_request *)((char *)drive - offsetof(struct nvme_request, drive));
}

/* The end of a command that went to the drive. */
static void end(struct nvme_request *r, int res)
{
	const struct drive_request *d = &r->drive;
	bool read = d->type == DISK_READ;

	if (res == 0) {
		drive_count(r->cq->port, d->type, d->len);
		nvme_finish(r, NVME_SUCCESS);
		return;
	}
	if (drive_holds(d, -res)) {
		nvme_hold(r);
		return;
	}
	drive_count_error(r->cq->port);
	if (res == -ENOSPC || res == -EDQUOT)
		nvme_finish(r, NVME_CAPACITY_EXCEEDED);
	else if (d->type == DISK_FLUSH)
		nvme_finish(r, NVME_INTERNAL_ERROR);
	else
		nvme_finish(r, read ? NVME_READ_ERROR : NVME_WRITE_FAULT);
}

static void done(struct drive_request *drive, int res)
{
	end(request_of(drive), res);
}

static void refuse(struct nvme_request *r, uint16_t status)
{
	drive_count_error(r->cq->port);
	nvme_finish(r, status);
}

/* With the cache turned off, what is completed is durable (5.21.1.6). */
static bool durable(const struct nvme_request *r)
{
	return r->command.cdw12 & NVME_FUA || atomic_load_explicit(&r->cq->nvme->write_through, memory_order_relaxed);
}

/* Sets the range of @blocks from @first on. False when it is not on the disk. */
static bool set_range(struct nvme_request *r, uint64_t first, uint64_t blocks)
{
	uint32_t sector = drive_sector(drive_of(r));

	if (!range_inside(first, blocks, drive_size(drive_of(r)) / sector))
		return false;
	r->drive.offset = first * sector;
	r->drive.len = blocks * sector;
	return true;
}

/* Command dwords 10 to 12 of reads, writes and write zeroes. */
static bool set_command_range(struct nvme_request *r)
{
	const struct nvme_command *c = &r->command;

	return set_range(r, (uint64_t)c->cdw11 << 32 | c->cdw10, (uint64_t)(c->cdw12 & 0xffff) + 1);
}

/* --- reads and writes (6.9, 6.15) --- */

static void read_flushed(struct drive_request *drive, int res)
{
	struct nvme_request *r = request_of(drive);

	if (res < 0) {
		end(r, res);
		return;
	}
	r->flushing = false;
	drive->type = DISK_READ;
	drive->done = done;
	drive_submit(r->cq->port, drive);
}

static void begin_data(struct nvme_request *r)
{
	const struct nvme_command *c = &r->command;
	struct drive_request *d = &r->drive;
	bool write = c->opcode == NVME_WRITE;
	uint16_t status;

	if (write && drive_readonly(drive_of(r)))
		status = NVME_WRITE_PROTECTED;
	else if (((uint64_t)(c->cdw12 & 0xffff) + 1) * drive_sector(drive_of(r)) > NVME_TRANSFER_MAX)
		status = NVME_INVALID_FIELD;
	else if (!set_command_range(r))
		status = NVME_LBA_OUT_OF_RANGE;
	else
		status = nvme_prp_map(r->cq->nvme->memory, c->prp1, c->prp2, d->len, r->iov, &d->iov_count);
	if (status != NVME_SUCCESS) {
		refuse(r, status);
		return;
	}
	d->type = write ? DISK_WRITE : DISK_READ;
	d->iov = r->iov;
	d->durable = write && durable(r);
	if (!write && c->cdw12 & NVME_FUA) {
		/* What is read is made durable first. */
		d->type = DISK_FLUSH;
		d->done = read_flushed;
	}
	drive_submit(r->cq->port, d);
}

/* --- flush, write zeroes (6.8, 6.16) --- */

static void begin_flush(struct nvme_request *r)
{
	r->drive.type = DISK_FLUSH;
	drive_submit(r->cq->port, &r->drive);
}

static void begin_zeroes(struct nvme_request *r)
{
	if (drive_readonly(drive_of(r))) {
		refuse(r, NVME_WRITE_PROTECTED);
	} else if (!set_command_range(r)) {
		refuse(r, NVME_LBA_OUT_OF_RANGE);
	} else {
		r->drive.type = DISK_WRITE_ZEROES;
		r->drive.unmap = r->command.cdw12 & NVME_DEALLOCATE;
		r->drive.durable = durable(r);
		drive_submit(r->cq->port, &r->drive);
	}
}

/* --- dataset management (6.7) --- */

/* Reads range r->range of the guest's list. */
static uint16_t read_range(struct nvme_request *r, struct nvme_range *range)
{
	struct iovec iov[3];
	unsigned count;
	uint64_t skip = r->range * sizeof(*range);
	uint8_t *to = (uint8_t *)range;
	uint64_t left = sizeof(*range);
	/* The list as far as it is wanted: at most a page, in two pieces. */
	uint16_t status = nvme_prp_map(r->cq->nvme->memory, r->command.prp1, r->command.prp2, skip + left, iov, &count);

	for (unsigned i = 0; status == NVME_SUCCESS && i < count && left > 0; i++) {
		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		uint64_t len = MIN(left, iov[i].iov_len - skip);
		memcpy(to, (uint8_t *)iov[i].iov_base + skip, len);
		to += len;
		left -= len;
		skip = 0;
	}
	return status;
}

static void range_done(struct drive_request *drive, int res);

/*
 * Discards range after range. One that ends before drive_submit() returns comes back here, not deeper: a list is long,
 * the thread's stack is not.
 */
static void next_ranges(struct nvme_request *r)
{
	unsigned ranges = (r->command.cdw10 & 0xff) + 1;
	struct nvme_range range = {};

	r->looping = true;
	do {
		r->again = false;
		if (r->range == ranges) {
			r->drive.len = 0;
			end(r, 0);
			return;
		}
		uint16_t status = read_range(r, &range);
		r->range++;
		if (status == NVME_SUCCESS && !set_range(r, range.block, range.blocks))
			status = NVME_LBA_OUT_OF_RANGE;
		if (status != NVME_SUCCESS) {
			refuse(r, status);
			return;
		}
		if (range.blocks == 0) {
			r->again = true;
			continue;
		}
		drive_submit(r->cq->port, &r->drive);
	} while (r->again);
	r->looping = false;
}

static void range_done(struct drive_request *drive, int res)
{
	struct nvme_request *r = request_of(drive);

	if (res < 0)
		end(r, res);
	else if (r->looping)
		r->again = true;
	else
		next_ranges(r);
}

static void begin_dataset(struct nvme_request *r)
{
	if (!(r->command.cdw11 & NVME_DATASET_DEALLOCATE)) {
		nvme_finish(r, NVME_SUCCESS); /* the other attributes are hints that are not taken */
	} else if (drive_readonly(drive_of(r))) {
		refuse(r, NVME_WRITE_PROTECTED);
	} else {
		r->drive.type = DISK_DISCARD;
		r->drive.durable = atomic_load_explicit(&r->cq->nvme->write_through, memory_order_relaxed);
		r->drive.done = range_done;
		next_ranges(r);
	}
}

void nvme_io_begin(struct nvme_request *r)
{
	const struct nvme_command *c = &r->command;

	r->drive = (struct drive_request){.done = done};
	if (c->flags != 0) {
		refuse(r, NVME_INVALID_FIELD);
		return;
	}
	if (c->nsid != 1 && !(c->nsid == NVME_NSID_ALL && c->opcode == NVME_FLUSH)) {
		refuse(r, NVME_INVALID_NAMESPACE);
		return;
	}
	switch (c->opcode) {
	case NVME_READ:
	case NVME_WRITE:
		begin_data(r);
		break;
	case NVME_FLUSH:
		begin_flush(r);
		break;
	case NVME_WRITE_ZEROES:
		begin_zeroes(r);
		break;
	case NVME_DATASET:
		begin_dataset(r);
		break;
	default:
		refuse(r, NVME_INVALID_OPCODE);
	}
}
