/*
 * What a device can ask of the machine as a whole. Called on a vCPU thread in the middle of the guest's access, or by
 * a timer on the main thread, with no device lock held: the machine notes it, stops its vCPUs soon, and acts on its
 * main thread.
 */
#ifndef GLINT_VMM_DEVICES_EVENTS_H
#define GLINT_VMM_DEVICES_EVENTS_H

struct machine_events {
	void (*reset)(void *arg);
	void (*power_off)(void *arg);
	void (*panicked)(void *arg);     /* the guest's kernel says so */
	void (*crash_loaded)(void *arg); /* the same, and the guest takes care of it by itself */
	void (*watchdog)(void *arg);     /* nobody fed it */
	void *arg;
};

#endif
