/*
 * What the filters (filters.c, run when Glint is built) and the code that installs them (sandbox.c) agree on.
 */
#ifndef GLINT_VMM_SANDBOX_FILTERS_H
#define GLINT_VMM_SANDBOX_FILTERS_H

/* Stands in the filters for the number of the process, which is known only when it runs. More than any pid (2^22). */
#define SANDBOX_OWN_PID 0x5a9d0001u

#endif
