/*
 * The tablet; see tablet.h. The events of one point end with a SYN_REPORT and may be spread over as many goes as the
 * guest's buffers need; a point leaves the line when its SYN_REPORT is out. After a move the point that was under way
 * is told again from its beginning: that changes nothing but the wheel, by one notch.
 *
 * Touches guest memory through its queues.
 */
#include "vmm/virtio/tablet.h"

#include "base/cleanup.h"
#include "base/util.h"
#include "vmm/devices/ps2.h"
#include "vmm/virtio/iov.h"
#include "vmm/virtio/virtio_pci.h"

#include <errno.h>
#include <linux/input-event-codes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_input.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_SIZE  64
#define LINE_MAX    16u
#define EVENTS_MAX  8u /* of one point: two axes, three buttons, wheel, SYN_REPORT */
#define CHAINS_A_GO 64u
#define BUS_VIRTUAL 0x06

enum { EVENT_QUEUE, STATUS_QUEUE, QUEUES };

struct tablet {
	struct virtio_device device;
	uint8_t select, subsel;
	pthread_mutex_t lock; /* of the line */
	size_t waiting;
	struct tablet_point line[LINE_MAX];
	/* The event queue's thread's: */
	struct tablet_point told; /* what the guest knows */
	unsigned events, next;    /* of the first point of the line, when events is not 0 */
	struct virtio_input_event event[EVENTS_MAX];
};

static struct tablet *tablet_of(struct virtio_device *dev)
{
	return (struct tablet *)((char *)dev - offsetof(struct tablet, device));
}

/* --- configuration (5.8.4) --- */

static void set_bit(struct virtio_input_config *c, unsigned bit)
{
	c->u.bitmap[bit / 8] |= (uint8_t)(1u << bit % 8);
	c->size = MAX(c->size, (uint8_t)(bit / 8 + 1));
}

static void event_bits(struct virtio_input_config *c, uint8_t type)
{
	if (type == EV_KEY) {
		set_bit(c, BTN_LEFT);
		set_bit(c, BTN_RIGHT);
		set_bit(c, BTN_MIDDLE);
	} else if (type == EV_REL) {
		set_bit(c, REL_WHEEL);
	} else if (type == EV_ABS) {
		set_bit(c, ABS_X);
		set_bit(c, ABS_Y);
	}
}

static void fill_config(struct virtio_input_config *c)
{
	static const char name[] = "Glint tablet";

	switch (c->select) {
	case VIRTIO_INPUT_CFG_ID_NAME:
		if (c->subsel == 0) {
			c->size = sizeof(name) - 1;
			memcpy(c->u.string, name, sizeof(name) - 1);
		}
		break;
	case VIRTIO_INPUT_CFG_ID_DEVIDS:
		if (c->subsel == 0) {
			c->size = sizeof(c->u.ids);
			c->u.ids = (struct virtio_input_devids){
				.bustype = BUS_VIRTUAL, .vendor = 0x1af4, .product = 3, .version = 1};
		}
		break;
	case VIRTIO_INPUT_CFG_EV_BITS:
		event_bits(c, c->subsel);
		break;
	case VIRTIO_INPUT_CFG_ABS_INFO:
		if (c->subsel == ABS_X || c->subsel == ABS_Y) {
			c->size = sizeof(c->u.abs);
			c->u.abs = (struct virtio_input_absinfo){.max = TABLET_MAX};
		}
		break;
	default:
		break;
	}
}

static void config_read(struct virtio_device *dev, uint8_t *config)
{
	const struct tablet *t = tablet_of(dev);
	struct virtio_input_config c = {.select = t->select, .subsel = t->subsel};

	fill_config(&c);
	memcpy(config, &c, sizeof(c));
}

static void config_write(struct virtio_device *dev, const uint8_t *config, size_t offset, size_t len)
{
	struct tablet *t = tablet_of(dev);

	(void)offset, (void)len;
	t->select = config[offsetof(struct virtio_input_config, select)];
	t->subsel = config[offsetof(struct virtio_input_config, subsel)];
}

/* --- events --- */

static void add_event(struct tablet *t, uint16_t type, uint16_t code, uint32_t value)
{
	t->event[t->events++] = (struct virtio_input_event){.type = type, .code = code, .value = value};
}

static void add_button(struct tablet *t, const struct tablet_point *p, unsigned button, uint16_t code)
{
	if ((p->buttons ^ t->told.buttons) & button)
		add_event(t, EV_KEY, code, (p->buttons & button) != 0);
}

/* The events that lead from what the guest knows to the first point of the line. */
static void make_events(struct tablet *t, const struct tablet_point *p)
{
	t->events = t->next = 0;
	if (p->x != t->told.x)
		add_event(t, EV_ABS, ABS_X, p->x);
	if (p->y != t->told.y)
		add_event(t, EV_ABS, ABS_Y, p->y);
	add_button(t, p, PS2_BUTTON_LEFT, BTN_LEFT);
	add_button(t, p, PS2_BUTTON_RIGHT, BTN_RIGHT);
	add_button(t, p, PS2_BUTTON_MIDDLE, BTN_MIDDLE);
	if (p->wheel)
		add_event(t, EV_REL, REL_WHEEL, (uint32_t)(int32_t)p->wheel);
	add_event(t, EV_SYN, SYN_REPORT, 0);
}

/* Makes sure that there is an event to tell; false when the line is empty. */
static bool next_event(struct tablet *t)
{
	pthread_mutex_lock(&t->lock);
	if (t->events && t->next == t->events) {
		t->told = t->line[0];
		memmove(t->line, t->line + 1, --t->waiting * sizeof(t->line[0]));
		t->events = 0;
	}
	bool more = t->waiting > 0;
	if (more && !t->events)
		make_events(t, &t->line[0]);
	pthread_mutex_unlock(&t->lock);
	return more;
}

static void kick_events(struct virtio_queue *queue)
{
	struct tablet *t = tablet_of(queue->device);
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	struct virtqueue_chain chain;
	unsigned told = 0;

	if (!virtio_may_take(queue))
		return;
	while (told < CHAINS_A_GO && next_event(t)) {
		result = virtqueue_pop(&queue->ring, &chain);
		if (result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring))
			continue;
		if (result != VIRTQUEUE_CHAIN)
			break;
		const struct iov to = {chain.iov + chain.readable, chain.writable};
		struct virtio_input_event *e = &t->event[t->next++];
		virtqueue_push(&queue->ring, chain.head, (uint32_t)iov_copy(&to, e, sizeof(*e), IOV_TO_GUEST));
		told++;
	}
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (told == CHAINS_A_GO)
		virtio_again(queue);
}

/* The driver's side of it (LEDs): a tablet has none. */
static void kick_status(struct virtio_queue *queue)
{
	enum virtqueue_result result = VIRTQUEUE_EMPTY;
	struct virtqueue_chain chain;
	unsigned taken = 0;

	if (!virtio_may_take(queue))
		return;
	do {
		while (taken < CHAINS_A_GO && (result = virtqueue_pop(&queue->ring, &chain)) == VIRTQUEUE_CHAIN) {
			virtqueue_push(&queue->ring, chain.head, 0);
			taken++;
		}
	} while (taken < CHAINS_A_GO && result == VIRTQUEUE_EMPTY && virtqueue_listen(&queue->ring));
	virtio_publish(queue);
	if (result == VIRTQUEUE_BROKEN)
		virtio_broken(queue);
	else if (taken == CHAINS_A_GO)
		virtio_again(queue);
}

static void kick(struct virtio_queue *queue)
{
	if (queue->index == EVENT_QUEUE)
		kick_events(queue);
	else
		kick_status(queue);
}

/* The next driver begins from nothing. */
static void reset(struct virtio_device *dev)
{
	struct tablet *t = tablet_of(dev);

	pthread_mutex_lock(&t->lock);
	t->waiting = 0;
	pthread_mutex_unlock(&t->lock);
	t->told = (struct tablet_point){};
	t->events = t->next = 0;
	t->select = t->subsel = 0;
}

/* --- what a person does --- */

bool tablet_in_use(const struct tablet *t)
{
	return t->device.transport && (atomic_load(&t->device.transport->status) & VIRTIO_CONFIG_S_DRIVER_OK);
}

/*
 * A movement goes into the last point of the line if that is but a movement, too, and has not begun to be told: where a
 * button went down or up stays where it was. What does not fit goes there, too.
 */
void tablet_move(struct tablet *t, const struct tablet_point *point)
{
	pthread_mutex_lock(&t->lock);
	struct tablet_point *last = t->waiting > 1 ? &t->line[t->waiting - 1] : NULL;
	bool same = last && last->buttons == point->buttons && last[-1].buttons == point->buttons && !last->wheel &&
		    !point->wheel;
	if (same || t->waiting == LINE_MAX)
		*last = *point;
	else
		t->line[t->waiting++] = *point;
	pthread_mutex_unlock(&t->lock);
	virtio_again(&t->device.queue[EVENT_QUEUE]);
}

/* --- state --- */

static void point_state(void *self, struct saved *s)
{
	struct tablet_point *p = self;
	uint8_t wheel = (uint8_t)p->wheel;

	saved_u16(s, "x", &p->x);
	saved_u16(s, "y", &p->y);
	saved_u8(s, "buttons", &p->buttons);
	saved_u8(s, "wheel", &wheel);
	p->wheel = (int8_t)wheel;
}

static void state(void *self, struct saved *s)
{
	struct tablet *t = tablet_of(self);

	saved_u8(s, "select", &t->select);
	saved_u8(s, "subsel", &t->subsel);
	saved_list(s, "waiting", t->line, &t->waiting, LINE_MAX, sizeof(t->line[0]), point_state);
	saved_subsection(s, "told", true, point_state, &t->told);
	if (saved_loading(s))
		t->events = t->next = 0;
}

static const struct virtio_ops ops = {
	.type = VIRTIO_ID_INPUT,
	.class_code = 0x098000, /* other input device */
	.config_size = sizeof(struct virtio_input_config),
	.config_read = config_read,
	.config_write = config_write,
	.start = kick,
	.kick = kick,
	.reset = reset,
	.state = state,
};

struct error *tablet_new(struct tablet **out, const struct memory *memory, struct iothread *thread)
{
	cleanup_free struct tablet *t = calloc(1, sizeof(*t));

	if (!t)
		return error_new(ENOMEM, "make the tablet");
	pthread_mutex_init(&t->lock, NULL);
	struct error *err = virtio_init(&t->device, &ops, "tablet", memory, 0, QUEUES, QUEUE_SIZE, &thread, 1);
	if (err) {
		virtio_destroy(&t->device);
		return err;
	}
	*out = steal_ptr(&t);
	return NULL;
}

void tablet_free(struct tablet *t)
{
	if (!t)
		return;
	virtio_destroy(&t->device);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

struct virtio_device *tablet_device(struct tablet *t)
{
	return &t->device;
}
