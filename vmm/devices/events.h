/*
 * What a device can ask of the machine as a whole. Called on a vCPU thread in the middle of the guest's access, with no
 * device lock held: the machine notes it, stops its vCPUs soon, and acts on its main thread.
 */
#ifndef GLINT_VMM_DEVICES_EVENTS_H
#define GLINT_VMM_DEVICES_EVENTS_H

struct machine_events {
	void (*reset)(void *arg);
	void (*power_off)(void *arg);
	void *arg;
};

#endif
