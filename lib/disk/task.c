/*
 * Tasks: procedures made of operations. A step may be called from within the operation it has just started (an
 * implementation that blocks does so); then it is not run inside itself, but as the next turn of the loop in task_run,
 * so that a long procedure needs no deep stack. Touches nothing but the task.
 */
#include "disk/internal.h"

void task_run(struct disk_task *task, int res)
{
	for (;;) {
		task->ready = false;
		task->running = true;
		if (!task->step(task, res))
			return;
		if (!task->ready)
			break;
		res = task->res;
	}
	task->running = false;
}

void task_done(struct disk_op *op, int res)
{
	struct disk_task *task = (struct disk_task *)((char *)op - offsetof(struct disk_task, op));

	if (task->running) {
		task->ready = true;
		task->res = res;
	} else {
		task_run(task, res);
	}
}
