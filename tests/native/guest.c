/* The guest program: runs the tests named by test=NAME[,NAME...] on the command line, one behind the other. */
#include "tests.h"

extern const char *current_test;

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	{"unmapped", test_unmapped},
	{"rtc", test_rtc},
	{"pm-timer", test_pm_timer},
	{"button", test_button},
	{"reset", test_reset},
	{"poweroff", test_poweroff},
	{"idle", test_idle},
	{"panic", test_panic},
	{"watchdog", test_watchdog},
	{"smp", test_smp},
	{"cpuid", test_cpuid},
	{"far-irq", test_far_irq},
	{"kvmclock", test_kvmclock},
	{"serial-echo", test_serial_echo},
	{"serial-loopback", test_serial_loopback},
	{"serial-irq", test_serial_irq},
	{"pci-scan", test_pci_scan},
	{"pci-garbage", test_pci_garbage},
	{"pci-bars", test_pci_bars},
	{"pci-msix", test_pci_msix},
	{"pci-intx", test_pci_intx},
	{"rng", test_rng},
	{"blk-id", test_blk_id},
	{"blk-verify", test_blk_verify},
	{"blk-ranges", test_blk_ranges},
	{"blk-limits", test_blk_limits},
	{"blk-malformed", test_blk_malformed},
	{"blk-fuzz", test_blk_fuzz},
	{"nvme-verify", test_nvme_verify},
	{"nvme-load", test_nvme_load},
	{"nvme-small", test_nvme_small},
	{"cd-verify", test_cd_verify},
	{"cd-load", test_cd_load},
	{"cd-tray", test_cd_tray},
	{"display", test_display},
	{"keyboard", test_keyboard},
	{"console-echo", test_console_echo},
	{"console-load", test_console_load},
	{"agent", test_agent},
	{"vsock-echo", test_vsock_echo},
	{"vsock-refused", test_vsock_refused},
	{"vsock-serve", test_vsock_serve},
	{"vsock-load", test_vsock_load},
	{"vsock-garbage", test_vsock_garbage},
	{"net-echo", test_net_echo},
	{"net-malformed", test_net_malformed},
	{"balloon", test_balloon},
	{"hotplug", test_hotplug},
	{"load", test_load},
	{"generations", test_generations},
	{"dirty", test_dirty},
};

static void run(const char *name, size_t len)
{
	for (unsigned i = 0; i < COUNT(tests); i++) {
		if (strlen(tests[i].name) != len || memcmp(tests[i].name, name, len) != 0)
			continue;
		current_test = tests[i].name;
		tests[i].run();
		print("TEST %s ok\n", current_test);
		return;
	}
	fail("there is no test %s", name);
}

void guest_main(void)
{
	const char *name = option("test", NULL);

	CHECK(name, "no test=NAME on the command line");
	for (;;) {
		size_t len = 0;
		while (name[len] && name[len] != ',')
			len++;
		run(name, len);
		if (!name[len])
			return;
		name += len + 1;
	}
}
