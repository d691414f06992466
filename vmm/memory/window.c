/*
 * Memory windows; see window.h. Touches KVM's memory slots and dirty logs.
 *
 * Moving a slot takes its log away, so whatever was in it is kept as "all of it": guests move BARs when they set up the
 * machine, not while somebody watches.
 */
#include "vmm/memory/window.h"

#include "base/log.h"
#include "base/util.h"

#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

void memory_window_init(struct memory_window *w, struct memory *mem, int vm_fd, void *host, uint64_t size)
{
	*w = (struct memory_window){.vm_fd = vm_fd, .slot = memory_new_slot(mem), .host = host, .size = size};
	pthread_mutex_init(&w->lock, NULL);
}

void memory_window_destroy(struct memory_window *w)
{
	memory_window_hide(w);
	pthread_mutex_destroy(&w->lock);
}

/* Tells KVM where the window is; @size 0 takes it away. */
static bool set_slot(const struct memory_window *w, uint64_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = w->slot,
		.flags = w->tracked && size ? KVM_MEM_LOG_DIRTY_PAGES : 0,
		.guest_phys_addr = w->gpa,
		.memory_size = size,
		.userspace_addr = (uint64_t)(uintptr_t)w->host,
	};

	return w->vm_fd >= 0 && ioctl(w->vm_fd, KVM_SET_USER_MEMORY_REGION, &region) == 0;
}

static void all_dirty(struct memory_window *w)
{
	memset(w->dirty, 0xff, sizeof(w->dirty));
}

bool memory_window_show(struct memory_window *w, uint64_t gpa)
{
	pthread_mutex_lock(&w->lock);
	w->gpa = gpa;
	w->shown = set_slot(w, w->size);
	bool shown = w->shown;
	pthread_mutex_unlock(&w->lock);
	return shown;
}

void memory_window_hide(struct memory_window *w)
{
	pthread_mutex_lock(&w->lock);
	if (w->shown && !set_slot(w, 0))
		log_warn("KVM does not take memory slot %u back", w->slot);
	w->shown = false;
	all_dirty(w);
	pthread_mutex_unlock(&w->lock);
}

void memory_window_track(struct memory_window *w, bool on)
{
	pthread_mutex_lock(&w->lock);
	if (w->tracked != on) {
		w->tracked = on;
		if (w->shown && !set_slot(w, w->size))
			log_warn("KVM does not change the log of memory slot %u", w->slot);
		all_dirty(w);
	}
	pthread_mutex_unlock(&w->lock);
}

void memory_window_touched(struct memory_window *w, uint64_t offset, uint64_t len)
{
	if (len == 0 || !range_inside(offset, len, w->size))
		return;
	pthread_mutex_lock(&w->lock);
	for (uint64_t page = offset / PAGE_BYTES; page <= (offset + len - 1) / PAGE_BYTES; page++)
		w->dirty[page / 64] |= 1ull << page % 64;
	pthread_mutex_unlock(&w->lock);
}

void memory_window_collect(struct memory_window *w, uint64_t *bitmap)
{
	uint64_t log[MEMORY_WINDOW_WORDS] = {};
	struct kvm_dirty_log request = {.slot = w->slot, .dirty_bitmap = log};

	pthread_mutex_lock(&w->lock);
	if (w->tracked && w->shown && ioctl(w->vm_fd, KVM_GET_DIRTY_LOG, &request) < 0)
		all_dirty(w);
	for (unsigned i = 0; i < MEMORY_WINDOW_WORDS; i++)
		bitmap[i] |= log[i] | w->dirty[i];
	memset(w->dirty, 0, sizeof(w->dirty));
	pthread_mutex_unlock(&w->lock);
}
