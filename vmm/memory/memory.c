/*
 * Guest RAM; see memory.h. Touches one memfd, its mapping, and KVM's memory slots.
 */
#include "vmm/memory/memory.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_BYTES ((uint64_t)2 << 20)

/* A KVM slot number carries its address space in the upper half (KVM_CAP_MULTI_ADDRESS_SPACE). */
static uint32_t slot_number(enum memory_space space, unsigned index)
{
	return (uint32_t)space << 16 | index;
}

static void add_region(struct memory *mem, uint64_t gpa, uint64_t offset, uint64_t size)
{
	mem->region[mem->regions++] = (struct memory_region){.gpa = gpa, .size = size, .host = mem->host + offset};
}

/*
 * Maps @fd so that a guest address and its host address are equal modulo a huge page: only then can KVM map guest
 * memory by huge pages, and a kernel's first touch of its memory costs one fault in 512.
 */
static void *map_aligned(int fd, uint64_t size)
{
	uint8_t *area = mmap(NULL, size + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED)
		return MAP_FAILED;
	uint8_t *start = (uint8_t *)align_up((uintptr_t)area, HUGE_BYTES);
	void *host = mmap(start, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0);
	int saved_errno = errno;
	if (start > area)
		munmap(area, (size_t)(start - area));
	munmap(start + align_up(size, PAGE_BYTES), (size_t)(area + HUGE_BYTES - start));
	errno = saved_errno;
	return host;
}

struct error *memory_create(struct memory *mem, uint64_t size)
{
	*mem = (struct memory){.fd = -1};
	if (size < MEMORY_MIN || size > MEMORY_MAX || !is_aligned(size, MIB))
		return error_hint(error_new(EINVAL, "guest memory of %llu bytes", (unsigned long long)size),
				  "give whole MiB from %llu MiB to %llu GiB", (unsigned long long)(MEMORY_MIN / MIB),
				  (unsigned long long)(MEMORY_MAX / GIB));
	cleanup_fd int fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return error_new(errno, "make guest memory");
	if (ftruncate(fd, (off_t)size) < 0)
		return error_new(errno, "make %llu MiB of guest memory", (unsigned long long)(size / MIB));
	void *host = map_aligned(fd, size);
	if (host == MAP_FAILED)
		return error_hint(error_new(errno, "map %llu MiB of guest memory", (unsigned long long)(size / MIB)),
				  "give the machine less memory");
	/* A guest's memory has no place in a core file, and no child process may share it. */
	madvise(host, size, MADV_DONTDUMP);
	madvise(host, size, MADV_DONTFORK);
	/* Obeyed where the host allows it: transparent_hugepage/shmem_enabled is `advise` on a Glint host. */
	madvise(host, size, MADV_HUGEPAGE);
	mem->fd = steal_fd(&fd);
	mem->size = size;
	mem->host = host;

	uint64_t low = MIN(size, MEMORY_LOW_TOP);
	add_region(mem, 0, 0, low);
	if (size > low)
		add_region(mem, MEMORY_HIGH_BASE, low, size - low);
	return NULL;
}

void memory_destroy(struct memory *mem)
{
	if (mem->host)
		munmap(mem->host, mem->size);
	mem->host = NULL;
	mem->regions = 0;
	close_fd(&mem->fd);
}

struct error *memory_attach(struct memory *mem, int vm_fd)
{
	for (unsigned i = 0; i < mem->regions; i++) {
		struct kvm_userspace_memory_region region = {
			.slot = slot_number(MEMORY_SPACE_NORMAL, i),
			.guest_phys_addr = mem->region[i].gpa,
			.memory_size = mem->region[i].size,
			.userspace_addr = (uint64_t)(uintptr_t)mem->region[i].host,
		};
		if (ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
			return error_new(errno, "give %llu MiB of memory to the guest at 0x%llx",
					 (unsigned long long)(region.memory_size / MIB),
					 (unsigned long long)region.guest_phys_addr);
	}
	return NULL;
}

uint32_t memory_new_slot(struct memory *mem)
{
	return slot_number(MEMORY_SPACE_NORMAL, MEMORY_REGIONS + mem->extra_slots++);
}

struct error *memory_add_rom(struct memory *mem, int vm_fd, uint64_t gpa, uint64_t size, void *host)
{
	struct kvm_userspace_memory_region region = {
		.slot = memory_new_slot(mem),
		.flags = KVM_MEM_READONLY,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uint64_t)(uintptr_t)host,
	};

	if (ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return error_new(errno, "give the guest %llu KiB of read-only memory at 0x%llx",
				 (unsigned long long)(size / KIB), (unsigned long long)gpa);
	return NULL;
}
