/*
 * Guest RAM; see memory.h. Touches one memfd, its mapping, KVM's memory slots; reads the host's count of huge pages.
 */
#include "vmm/memory/memory.h"

#include "base/cleanup.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* The kinds of pages: their size, for which host addresses are aligned, and flags of memfd_create(). */
static const struct page_kind {
	uint64_t bytes;
	unsigned memfd;
	const char *pool; /* of sysfs; NULL: not of a pool */
	const char *name;
} kinds[] = {
	[MEMORY_PAGES_AUTO] = {2 * MIB, 0, NULL, "auto"},
	[MEMORY_PAGES_SMALL] = {2 * MIB, 0, NULL, "off"},
	[MEMORY_PAGES_2M] = {2 * MIB, MFD_HUGETLB | MFD_HUGE_2MB, "/sys/kernel/mm/hugepages/hugepages-2048kB/", "2M"},
	[MEMORY_PAGES_1G] = {GIB, MFD_HUGETLB | MFD_HUGE_1GB, "/sys/kernel/mm/hugepages/hugepages-1048576kB/", "1G"},
};

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
static void *map_aligned(int fd, uint64_t size, const struct page_kind *kind)
{
	uint64_t huge = kind->bytes;
	uint8_t *area = mmap(NULL, size + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	/* Pages of a pool are reserved here: a guest that touched one that is not there would be killed. */
	int reserve = kind->pool ? 0 : MAP_NORESERVE;

	if (area == MAP_FAILED)
		return MAP_FAILED;
	uint8_t *start = (uint8_t *)align_up((uintptr_t)area, huge);
	void *host = mmap(start, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | reserve, fd, 0);
	int saved_errno = errno;
	if (start > area)
		munmap(area, (size_t)(start - area));
	munmap(start + align_up(size, PAGE_BYTES), (size_t)(area + huge - start));
	errno = saved_errno;
	return host;
}

/* The number in a file of the pool of @kind; 0 when there is no such pool. */
static unsigned long pool_number(const struct page_kind *kind, const char *file)
{
	char path[96], text[32] = "";

	snprintf(path, sizeof(path), "%s%s", kind->pool, file);
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && read(fd, text, sizeof(text) - 1) < 0)
		return 0;
	return strtoul(text, NULL, 10);
}

static struct error *map_error(const struct page_kind *kind, uint64_t size)
{
	int why = errno;

	if (!kind->pool)
		return error_hint(error_new(why, "map %llu MiB of guest memory", (unsigned long long)(size / MIB)),
				  "give the machine less memory");
	unsigned long need = (unsigned long)(size / kind->bytes), total = pool_number(kind, "nr_hugepages");
	unsigned long unclaimed = pool_number(kind, "free_hugepages"), reserved = pool_number(kind, "resv_hugepages");
	unclaimed -= MIN(unclaimed, reserved);
	return error_hint(
		error_new(why, "%llu MiB of guest memory need %lu huge pages of %s; %lu of the host's %lu are free",
			  (unsigned long long)(size / MIB), need, kind->name, unclaimed, total),
		"add some: echo %lu >%snr_hugepages", total + need - MIN(unclaimed, need), kind->pool);
}

static struct error *make_memfd(uint64_t size, const struct page_kind *kind, int *out)
{
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | kind->memfd;
	cleanup_fd int fd = memfd_create("guest-ram", flags | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create("guest-ram", flags);
	if (fd < 0 && kind->pool)
		return error_hint(error_new(errno, "make guest memory of huge pages of %s", kind->name),
				  "the host's kernel or processor has no pages of that size");
	if (fd < 0)
		return error_new(errno, "make guest memory");
	if (ftruncate(fd, (off_t)size) < 0)
		return error_new(errno, "make %llu MiB of guest memory", (unsigned long long)(size / MIB));
	*out = steal_fd(&fd);
	return NULL;
}

struct error *memory_create(struct memory *mem, uint64_t size)
{
	return memory_create_of(mem, size, MEMORY_PAGES_AUTO);
}

struct error *memory_create_of(struct memory *mem, uint64_t size, enum memory_pages pages)
{
	const struct page_kind *kind = &kinds[pages];
	cleanup_fd int fd = -1;

	*mem = (struct memory){.fd = -1};
	if (size < MEMORY_MIN || size > MEMORY_MAX || !is_aligned(size, MIB))
		return error_hint(error_new(EINVAL, "guest memory of %llu bytes", (unsigned long long)size),
				  "give whole MiB from %llu MiB to %llu GiB", (unsigned long long)(MEMORY_MIN / MIB),
				  (unsigned long long)(MEMORY_MAX / GIB));
	if (kind->pool && !is_aligned(size, kind->bytes))
		return error_hint(error_new(EINVAL, "%llu MiB of guest memory are no whole huge pages of %s",
					    (unsigned long long)(size / MIB), kind->name),
				  "give the machine a multiple of that");
	TRY(make_memfd(size, kind, &fd));
	void *host = map_aligned(fd, size, kind);
	if (host == MAP_FAILED)
		return map_error(kind, size);
	/* A guest's memory has no place in a core file, and no child process may share it. */
	madvise(host, size, MADV_DONTDUMP);
	madvise(host, size, MADV_DONTFORK);
	/* Obeyed where the host allows it: transparent_hugepage/shmem_enabled is `advise` on a Glint host. */
	if (!kind->pool)
		madvise(host, size, pages == MEMORY_PAGES_SMALL ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
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
