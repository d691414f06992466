/*
 * Tests of I/O threads themselves: calls, files, watches, a full ring, and what the ring refuses once the thread runs.
 */
#include "base/util.h"
#include "vmm/machine/iothread.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

static struct iothread *thread;

static void no_error(struct error *err)
{
	if (err)
		fail_msg("%s", error_text(err));
}

static struct error *entered(void *arg)
{
	atomic_fetch_add((atomic_int *)arg, 1);
	return NULL;
}

static int setup(void **state)
{
	static atomic_int enters;

	(void)state;
	no_error(iothread_new(&thread, 0));
	int before = atomic_load(&enters);
	no_error(iothread_start(thread, entered, &enters));
	assert_int_equal(atomic_load(&enters), before + 1);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	iothread_free(thread);
	return 0;
}

static struct error *refuse(void *arg)
{
	(void)arg;
	return error_new(EPERM, "lock it in");
}

static void test_enter_fails(void **state)
{
	struct iothread *t;

	(void)state;
	no_error(iothread_new(&t, 7));
	struct error *err = iothread_start(t, refuse, NULL);
	assert_non_null(err);
	assert_non_null(strstr(error_text(err), "start I/O thread 7: lock it in"));
	error_free(err);
	iothread_free(t);
}

static void count_call(void *arg)
{
	char name[16];

	assert_int_equal(pthread_getname_np(pthread_self(), name, sizeof(name)), 0);
	assert_string_equal(name, "io0");
	++*(unsigned *)arg;
}

static void *call_often(void *arg)
{
	for (unsigned i = 0; i < 2000; i++)
		iothread_call(thread, count_call, arg);
	return NULL;
}

/* Calls from several threads run one at a time, all of them, and are over when iothread_call() returns. */
static void test_calls(void **state)
{
	pthread_t callers[3];
	unsigned count = 0;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(callers); i++)
		assert_int_equal(pthread_create(&callers[i], NULL, call_often, &count), 0);
	for (size_t i = 0; i < ARRAY_SIZE(callers); i++)
		pthread_join(callers[i], NULL);
	assert_int_equal(count, 6000);
}

/* --- files --- */

static void test_files(void **state)
{
	unsigned slot[IOTHREAD_FILES_MAX], last;
	int fd = memfd_create("file", MFD_CLOEXEC);

	(void)state;
	/* The thread's own eventfd has one. */
	for (unsigned i = 0; i < IOTHREAD_FILES_MAX - 1; i++) {
		no_error(iothread_add_file(thread, fd, &slot[i]));
		for (unsigned j = 0; j < i; j++)
			assert_int_not_equal(slot[i], slot[j]);
	}
	struct error *err = iothread_add_file(thread, fd, &last);
	assert_int_equal(error_errno(err), ENFILE);
	error_free(err);
	iothread_remove_file(thread, slot[100]);
	no_error(iothread_add_file(thread, fd, &last));
	assert_int_equal(last, slot[100]);
	close(fd);
}

/* --- watches --- */

struct counter {
	struct io_watch watch;
	atomic_uint count;
};

static void counted(struct io_watch *watch)
{
	atomic_fetch_add(&((struct counter *)watch)->count, 1);
}

static void signal_fd(int fd)
{
	uint64_t one = 1;
	assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
}

static bool reaches(atomic_uint *count, unsigned least)
{
	for (unsigned i = 0; i < 20000 && atomic_load(count) < least; i++)
		usleep(100);
	return atomic_load(count) >= least;
}

static void test_watch(void **state)
{
	static struct counter c;
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	(void)state;
	c = (struct counter){.watch.ready = counted};
	no_error(iothread_add_file(thread, fd, &c.watch.slot));
	iothread_watch(thread, &c.watch);
	for (unsigned i = 1; i <= 100; i++) {
		signal_fd(fd);
		assert_true(reaches(&c.count, i));
	}
	iothread_unwatch(thread, &c.watch);
	unsigned before = atomic_load(&c.count);
	signal_fd(fd);
	usleep(10000);
	assert_int_equal(atomic_load(&c.count), before);
	/* What was signalled while nobody watched is seen by who comes. */
	iothread_watch(thread, &c.watch);
	assert_true(reaches(&c.count, before + 1));
	iothread_unwatch(thread, &c.watch);
	iothread_remove_file(thread, c.watch.slot);
	close(fd);
}

/* A removed file is let go of at once, and watches of others go on. */
static void test_let_go(void **state)
{
	static struct counter c;
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), ends[2];
	struct pollfd other_end = {.events = POLLIN};
	unsigned slot;

	(void)state;
	c = (struct counter){.watch.ready = counted};
	no_error(iothread_add_file(thread, fd, &c.watch.slot));
	iothread_watch(thread, &c.watch);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
		no_error(iothread_add_file(thread, ends[1], &slot));
		iothread_remove_file(thread, slot);
		close(ends[1]);
		other_end.fd = ends[0];
		assert_int_equal(poll(&other_end, 1, 10000), 1);
		assert_int_equal(other_end.revents, POLLHUP);
		close(ends[0]);
		unsigned before = atomic_load(&c.count);
		signal_fd(fd);
		assert_true(reaches(&c.count, before + 1));
	}
	iothread_unwatch(thread, &c.watch);
	iothread_remove_file(thread, c.watch.slot);
	close(fd);
}

/* --- operations, more of them than the ring has entries, and longer lists than it keeps --- */

#define OPS 700
#define IOV 9

static struct op {
	struct disk_op op;
	uint8_t data[IOV];
} ops[OPS];
static unsigned busy, bad;
static unsigned file_slot;

static void written(struct disk_op *op, int res)
{
	(void)op;
	bad += res != IOV;
	busy--;
}

static void write_all_ops(void *arg)
{
	(void)arg;
	busy = OPS;
	bad = 0;
	for (unsigned i = 0; i < OPS; i++) {
		struct iovec iov[IOV];
		ops[i].op.done = written;
		for (unsigned j = 0; j < IOV; j++) {
			ops[i].data[j] = (uint8_t)(i * 31 + j);
			iov[j] = (struct iovec){&ops[i].data[j], 1};
		}
		struct disk_io *io = iothread_io(thread);
		io->writev(io, &ops[i].op, file_slot, iov, IOV, (uint64_t)i * IOV);
	}
	iothread_drain(thread, &busy);
}

static void test_many_operations(void **state)
{
	int fd = memfd_create("file", MFD_CLOEXEC);

	(void)state;
	no_error(iothread_add_file(thread, fd, &file_slot));
	iothread_call(thread, write_all_ops, NULL);
	assert_int_equal(busy, 0);
	assert_int_equal(bad, 0);
	for (unsigned i = 0; i < OPS; i++) {
		uint8_t data[IOV];
		assert_int_equal(pread(fd, data, IOV, (off_t)i * IOV), IOV);
		assert_memory_equal(data, ops[i].data, IOV);
	}
	close(fd);
}

/* --- the restrictions --- */

static int ring_fd(void)
{
	char path[64], target[64];

	for (int fd = 0; fd < 256; fd++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, target, sizeof(target) - 1);
		if (n > 0 && strncmp(target, "anon_inode:[io_uring]", (size_t)n) == 0)
			return fd;
	}
	fail_msg("no ring");
	return -1;
}

/*
 * As an attacker would who runs on the I/O thread: maps its ring anew and submits to it. The layout is that of any ring
 * of the same size. The thread's own view of the ring is wrong afterwards, so nothing more is asked of it.
 */
static int attack(int fd, void (*prepare)(struct io_uring_sqe *sqe))
{
	struct io_uring_params params = {.flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER |
						  IORING_SETUP_DEFER_TASKRUN,
					 .cq_entries = 1024};
	struct io_uring twin, ring;
	struct io_uring_cqe *cqe = NULL;

	if (io_uring_queue_init_params(128, &twin, &params) != 0 || io_uring_queue_mmap(fd, &params, &ring) != 0)
		return 0;
	ring.ring_fd = ring.enter_ring_fd = fd;
	ring.sq.sqe_head = ring.sq.sqe_tail = *ring.sq.ktail;
	prepare(io_uring_get_sqe(&ring));
	int ret = io_uring_submit_and_wait(&ring, 1);
	if (ret > 0)
		ret = io_uring_peek_cqe(&ring, &cqe) == 0 ? cqe->res : 0;
	if (cqe)
		io_uring_cqe_seen(&ring, cqe);
	io_uring_queue_exit(&twin);
	return ret;
}

static int null_fd;

static void prepare_open(struct io_uring_sqe *sqe)
{
	io_uring_prep_openat(sqe, AT_FDCWD, "/dev/null", O_RDONLY, 0);
	sqe->flags |= IOSQE_FIXED_FILE;
}

static void prepare_socket(struct io_uring_sqe *sqe)
{
	io_uring_prep_socket(sqe, AF_UNIX, SOCK_STREAM, 0, 0);
	sqe->flags |= IOSQE_FIXED_FILE;
}

static void prepare_plain_file(struct io_uring_sqe *sqe)
{
	io_uring_prep_write(sqe, null_fd, "x", 1, 0);
}

static void prepare_linked(struct io_uring_sqe *sqe)
{
	io_uring_prep_fsync(sqe, (int)file_slot, 0);
	sqe->flags |= IOSQE_FIXED_FILE | IOSQE_IO_LINK;
}

static void prepare_allowed(struct io_uring_sqe *sqe)
{
	io_uring_prep_fsync(sqe, (int)file_slot, 0);
	sqe->flags |= IOSQE_FIXED_FILE;
}

static int results[6];

static void attack_all(void *arg)
{
	static uint8_t probe[4096];
	int fd = *(int *)arg;

	results[0] = attack(fd, prepare_open);
	results[1] = attack(fd, prepare_socket);
	results[2] = attack(fd, prepare_plain_file);
	results[3] = attack(fd, prepare_linked);
	results[4] = syscall(SYS_io_uring_register, fd, IORING_REGISTER_PROBE, probe, 4) < 0 ? -errno : 0;
	results[5] = attack(fd, prepare_allowed);
}

static void test_restrictions(void **state)
{
	int fd = ring_fd();

	(void)state;
	null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	int file = memfd_create("file", MFD_CLOEXEC);
	no_error(iothread_add_file(thread, file, &file_slot));
	iothread_call(thread, attack_all, &fd);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(results[i], -EACCES);
	/* The attack itself works: what devices need gets through. */
	assert_int_equal(results[5], 0);
	/* Nor may another thread submit (SINGLE_ISSUER). */
	assert_int_equal(attack(fd, prepare_allowed), -EEXIST);
	close(file);
	close(null_fd);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_enter_fails),
		TEST(test_calls),
		TEST(test_files),
		TEST(test_watch),
		TEST(test_let_go),
		TEST(test_many_operations),
		TEST(test_restrictions),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
