/*
 * vCPU threads; see vcpu.h. Touches the VM's KVM descriptors, the kvm_run pages, and its own threads.
 */
#include "vmm/cpu/vcpu.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "base/util.h"
#include "vmm/cpu/exits.h"
#include "vmm/cpu/hyperv.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Enough for the handlers, which keep nothing large on the stack; small, for there may be 256. */
#define VCPU_STACK_BYTES (128 * 1024)

/* Interrupts KVM_RUN and nothing else. */
#define KICK_SIGNAL SIGUSR1

static void on_kick(int sig)
{
	(void)sig;
}

static void park(struct vcpu *vcpu)
{
	struct vcpus *group = vcpu->group;

	pthread_mutex_lock(&group->lock);
	group->parked++;
	pthread_cond_broadcast(&group->changed);
	while (group->pause && !group->quit)
		pthread_cond_wait(&group->changed, &group->lock);
	group->parked--;
	vcpu->run->immediate_exit = 0;
	pthread_mutex_unlock(&group->lock);
}

/* Waits to be paused: for a vCPU that cannot go on but whose machine has not stopped it yet. */
static void stand_still(struct vcpu *vcpu)
{
	struct vcpus *group = vcpu->group;

	pthread_mutex_lock(&group->lock);
	while (!group->pause && !group->quit)
		pthread_cond_wait(&group->changed, &group->lock);
	pthread_mutex_unlock(&group->lock);
}

static bool told_to_quit(struct vcpus *group)
{
	pthread_mutex_lock(&group->lock);
	bool quit = group->quit;
	pthread_mutex_unlock(&group->lock);
	return quit;
}

static void run_guest(struct vcpu *vcpu)
{
	struct vcpus *group = vcpu->group;

	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0) == 0) {
			if (vcpu_handle_exit(vcpu) == EXIT_GO_ON)
				continue;
			stand_still(vcpu);
		} else if (errno == EAGAIN) {
			/* A vCPU that waited for SIPI was woken; it runs at the next call. */
			continue;
		} else if (errno != EINTR) {
			log_err("vCPU %u: KVM_RUN: %s", vcpu->index, strerror(errno));
			group->events.failed(group->events.arg, "KVM_RUN failed");
			stand_still(vcpu);
		}
		if (__atomic_load_n(&group->pause, __ATOMIC_ACQUIRE)) {
			park(vcpu);
			if (told_to_quit(group))
				return;
		}
	}
}

static void *thread_main(void *arg)
{
	struct vcpu *vcpu = arg;
	struct vcpus *group = vcpu->group;
	char name[16];

	/* Its own name: naming another thread goes through /proc, which the sandbox has not. */
	snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
	prctl(PR_SET_NAME, name);
	struct error *err = vcpu->enter ? vcpu->enter() : NULL;
	pthread_mutex_lock(&group->lock);
	vcpu->err = err;
	vcpu->ready = true;
	pthread_cond_broadcast(&group->changed);
	pthread_mutex_unlock(&group->lock);
	if (err)
		return NULL;
	park(vcpu);
	if (!told_to_quit(group))
		run_guest(vcpu);
	return NULL;
}

/* Waits until the thread is set up; the first error stays. */
static void await_thread(struct vcpu *vcpu, struct error **first)
{
	struct vcpus *group = vcpu->group;

	pthread_mutex_lock(&group->lock);
	while (!vcpu->ready)
		pthread_cond_wait(&group->changed, &group->lock);
	pthread_mutex_unlock(&group->lock);
	struct error *err = error_wrap(vcpu->err, "start vCPU %u", vcpu->index);
	vcpu->err = NULL;
	if (*first)
		error_free(err);
	else
		*first = err;
}

struct error *vcpus_start(struct vcpus *group, struct error *(*enter)(void))
{
	struct sigaction action = {.sa_handler = on_kick}; /* no SA_RESTART: KVM_RUN must return */
	pthread_attr_t attr;
	struct error *err = NULL;

	sigaction(KICK_SIGNAL, &action, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, VCPU_STACK_BYTES);
	/* All at once: each locks itself in, which takes longer than making it. */
	for (unsigned i = 0; i < group->count && !err; i++) {
		struct vcpu *vcpu = &group->vcpu[i];
		vcpu->enter = enter;
		int rc = pthread_create(&vcpu->thread, &attr, thread_main, vcpu);
		if (rc != 0)
			err = error_new(rc, "start vCPU %u", vcpu->index);
		vcpu->started = rc == 0;
	}
	pthread_attr_destroy(&attr);
	for (unsigned i = 0; i < group->count; i++)
		if (group->vcpu[i].started)
			await_thread(&group->vcpu[i], &err);
	return err;
}

void vcpus_resume(struct vcpus *group)
{
	vcpus_tell_stopped(group);
	pthread_mutex_lock(&group->lock);
	__atomic_store_n(&group->pause, false, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&group->changed);
	pthread_mutex_unlock(&group->lock);
}

void vcpus_pause(struct vcpus *group)
{
	pthread_mutex_lock(&group->lock);
	__atomic_store_n(&group->pause, true, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&group->changed);
	for (unsigned i = 0; i < group->count; i++) {
		if (!group->vcpu[i].started)
			continue;
		/* Set before the signal: if the signal comes too early to interrupt KVM_RUN, this does. */
		__atomic_store_n(&group->vcpu[i].run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		pthread_kill(group->vcpu[i].thread, KICK_SIGNAL);
	}
	unsigned started = 0;
	for (unsigned i = 0; i < group->count; i++)
		started += group->vcpu[i].started;
	while (group->parked < started)
		pthread_cond_wait(&group->changed, &group->lock);
	pthread_mutex_unlock(&group->lock);
}

static struct error *create_one(struct vcpus *group, unsigned index)
{
	struct vcpu *vcpu = &group->vcpu[index];

	*vcpu = (struct vcpu){
		.group = group, .index = index, .apic_id = topology_apic_id(&group->model.topology, index), .fd = -1};
	vcpu->fd = ioctl(group->vm_fd, KVM_CREATE_VCPU, (unsigned long)vcpu->apic_id);
	if (vcpu->fd < 0)
		return error_new(errno, "make vCPU %u with the APIC id %u", index, vcpu->apic_id);
	if (group->model.hyperv)
		TRY(hyperv_enable(group->vm_fd, vcpu->fd));
	void *run = mmap(NULL, group->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED)
		return error_new(errno, "map vCPU %u", index);
	vcpu->run = run;
	return NULL;
}

static struct error *list_msrs(struct vcpus *group)
{
	struct kvm_msr_list probe = {0};

	/* The first call fails with E2BIG and says how many there are. */
	if (ioctl(group->kvm_fd, KVM_GET_MSR_INDEX_LIST, &probe) < 0 && errno != E2BIG)
		return error_new(errno, "list the processor's registers (KVM_GET_MSR_INDEX_LIST)");
	group->msrs = calloc(1, sizeof(probe) + (probe.nmsrs + HYPERV_MSRS) * sizeof(probe.indices[0]));
	if (!group->msrs)
		return error_new(ENOMEM, "list the processor's registers");
	group->msrs->nmsrs = probe.nmsrs;
	if (ioctl(group->kvm_fd, KVM_GET_MSR_INDEX_LIST, group->msrs) < 0)
		return error_new(errno, "list the processor's registers (KVM_GET_MSR_INDEX_LIST)");
	if (group->model.hyperv) {
		hyperv_msrs(group->msrs->indices + group->msrs->nmsrs);
		group->msrs->nmsrs += HYPERV_MSRS;
	}
	return NULL;
}

/* What holds for all vCPUs and must be said before there are any. */
static struct error *set_up_vm(struct vcpus *group)
{
	uint32_t last = topology_apic_id(&group->model.topology, group->model.vcpus - 1);
	struct kvm_enable_cap x2apic = {.cap = KVM_CAP_X2APIC_API, .args = {KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK}};
	struct kvm_enable_cap no_pmu = {.cap = KVM_CAP_PMU_CAPABILITY, .args = {KVM_PMU_CAP_DISABLE}};
	int max_id = ioctl(group->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID);

	if (max_id > 0 && last >= (uint32_t)max_id)
		return error_new(ERANGE, "make vCPUs with APIC ids up to %u: this machine's KVM allows %d", last,
				 max_id - 1);
	/* Without this an interrupt to processor 255 goes to all. */
	if (last >= APIC_ID_MAX && ioctl(group->vm_fd, KVM_ENABLE_CAP, &x2apic) < 0)
		return error_new(errno, "make a vCPU with the APIC id %u (KVM_CAP_X2APIC_API)", last);
	/* Not in the model; a KVM too old to leave them out keeps them unannounced. */
	(void)ioctl(group->vm_fd, KVM_ENABLE_CAP, &no_pmu);
	return NULL;
}

static struct error *create_all(struct vcpus *group)
{
	int run_bytes = ioctl(group->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (run_bytes < (int)sizeof(struct kvm_run))
		return error_new(run_bytes < 0 ? errno : 0, "ask KVM for the size of its run area");
	group->run_bytes = (size_t)run_bytes;
	int xsave = ioctl(group->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	/* 0 where the capability is unknown: the state is then of the old, fixed size. */
	group->xsave_bytes = xsave > (int)sizeof(struct kvm_xsave) ? (size_t)xsave : sizeof(struct kvm_xsave);
	TRY(list_msrs(group));
	TRY(set_up_vm(group));
	group->vcpu = calloc(group->model.vcpus, sizeof(*group->vcpu));
	if (!group->vcpu)
		return error_new(ENOMEM, "make %u vCPUs", group->model.vcpus);
	for (unsigned i = 0; i < group->model.vcpus; i++) {
		group->count = i + 1;
		TRY(create_one(group, i));
	}
	return vcpus_apply_model(group);
}

struct error *vcpus_apply_model(struct vcpus *group)
{
	const struct cpu_model *model = &group->model;
	cleanup_free struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + model->entries * sizeof(cpuid->entries[0]));

	if (!cpuid)
		return error_new(ENOMEM, "describe the processor to the vCPUs");
	cpuid->nent = (uint32_t)model->entries;
	for (unsigned i = 0; i < group->count; i++) {
		cpu_model_of_vcpu(model, i, cpuid->entries);
		if (ioctl(group->vcpu[i].fd, KVM_SET_CPUID2, cpuid) < 0)
			return error_new(errno, "describe the processor to vCPU %u (KVM_SET_CPUID2)", i);
	}
	return NULL;
}

struct error *vcpus_create(struct vcpus *group, int kvm_fd, int vm_fd, struct bus *pio, struct bus *mmio[MEMORY_SPACES],
			   const struct vcpu_events *events, const struct cpu_config *config)
{
	memset(group, 0, sizeof(*group));
	group->kvm_fd = kvm_fd;
	group->vm_fd = vm_fd;
	group->pio = pio;
	for (unsigned i = 0; i < MEMORY_SPACES; i++)
		group->mmio[i] = mmio[i];
	group->events = *events;
	group->pause = true;
	pthread_mutex_init(&group->lock, NULL);
	pthread_cond_init(&group->changed, NULL);
	TRY(cpu_offer_get(kvm_fd, &group->offer));
	TRY(cpu_model_make(&group->offer, config, &group->model));
	return create_all(group);
}

void vcpus_destroy(struct vcpus *group)
{
	free(group->msrs);
	group->msrs = NULL;
	if (group->count == 0)
		return;
	pthread_mutex_lock(&group->lock);
	group->quit = true;
	pthread_cond_broadcast(&group->changed);
	pthread_mutex_unlock(&group->lock);
	for (unsigned i = 0; i < group->count; i++) {
		struct vcpu *vcpu = &group->vcpu[i];
		if (vcpu->started)
			pthread_join(vcpu->thread, NULL);
		if (vcpu->run)
			munmap(vcpu->run, group->run_bytes);
		close_fd(&vcpu->fd);
	}
	free(group->vcpu);
	pthread_cond_destroy(&group->changed);
	pthread_mutex_destroy(&group->lock);
	group->count = 0;
}
