/*
 * Physical region pages (4.3): where a command's data is in guest memory. The first entry may begin anywhere in its
 * page; the second is the other page of a transfer of two, or leads to a list of all the others. The last entry of a
 * page of a list leads to the next when there is more; that one begins at its page's start, so a list has at most one
 * page for 511 pages of data, and cannot go round in circles for longer than the transfer is.
 *
 * Each entry is read once: what the guest changes meanwhile harms only itself. Touches guest memory.
 */
#include "vmm/nvme/internal.h"

#include <string.h>

struct walk {
	const struct memory *memory;
	struct iovec *iov;
	unsigned count;
	uint64_t left;
};

/* Adds one entry's part of the data. */
static uint16_t add(struct walk *w, uint64_t address)
{
	uint64_t len = MIN(w->left, PAGE_BYTES - (address & (PAGE_BYTES - 1)));
	uint8_t *host = memory_at(w->memory, address, len);

	if (!host)
		return NVME_TRANSFER_ERROR;
	struct iovec *last = w->iov + w->count - 1;
	if (w->count > 0 && (uint8_t *)last->iov_base + last->iov_len == host)
		last->iov_len += len;
	else
		w->iov[w->count++] = (struct iovec){host, len};
	w->left -= len;
	return NVME_SUCCESS;
}

static uint16_t add_page(struct walk *w, uint64_t address)
{
	return is_aligned(address, PAGE_BYTES) ? add(w, address) : NVME_INVALID_PRP_OFFSET;
}

static uint16_t add_list(struct walk *w, uint64_t list)
{
	if (!is_aligned(list, sizeof(uint64_t)))
		return NVME_INVALID_PRP_OFFSET;
	while (w->left > 0) {
		uint64_t bytes = PAGE_BYTES - (list & (PAGE_BYTES - 1));
		const uint64_t *entry = memory_at(w->memory, list, bytes);
		if (!entry)
			return NVME_TRANSFER_ERROR;
		for (uint64_t n = bytes / sizeof(*entry); n > 0 && w->left > 0; n--, entry++) {
			uint64_t address = __atomic_load_n(entry, __ATOMIC_RELAXED);
			if (n == 1 && w->left > PAGE_BYTES) {
				list = address;
				break;
			}
			uint16_t status = add_page(w, address);
			if (status != NVME_SUCCESS)
				return status;
		}
		if (w->left > 0 && !is_aligned(list, PAGE_BYTES))
			return NVME_INVALID_PRP_OFFSET;
	}
	return NVME_SUCCESS;
}

uint16_t nvme_prp_map(const struct memory *memory, uint64_t prp1, uint64_t prp2, uint64_t len, struct iovec *iov,
		      unsigned *count)
{
	struct walk w = {.memory = memory, .iov = iov, .left = len};
	uint16_t status = NVME_SUCCESS;

	if (!is_aligned(prp1, sizeof(uint32_t)))
		return NVME_INVALID_PRP_OFFSET;
	if (len > 0)
		status = add(&w, prp1);
	if (status == NVME_SUCCESS && w.left > 0)
		status = w.left <= PAGE_BYTES ? add_page(&w, prp2) : add_list(&w, prp2);
	*count = w.count;
	return status;
}

uint16_t nvme_prp_copy(const struct memory *memory, const struct nvme_command *c, void *data, size_t len, bool to_guest)
{
	struct iovec iov[2];
	unsigned count;
	uint8_t *at = data;
	uint16_t status = nvme_prp_map(memory, c->prp1, c->prp2, len, iov, &count);

	for (unsigned i = 0; status == NVME_SUCCESS && i < count; i++) {
		if (to_guest)
			memcpy(iov[i].iov_base, at, iov[i].iov_len);
		else
			memcpy(at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	return status;
}
