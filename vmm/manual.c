/*
 * Build tool: prints what the package carries for people beside the program, from the program's own table of options.
 *
 *     manual man     glint-vmm(1)
 *     manual bash    completion for bash
 *
 * It may touch: its standard output.
 */
#include "option/manual.h"
#include "vmm/machine/config.h"

#include <string.h>

static void put_manual(void)
{
	puts(".TH GLINT\\-VMM 1 \"\" \"Glint " GLINT_VERSION "\" \"Glint\"\n"
	     ".SH NAME\n"
	     "glint\\-vmm \\- run one virtual machine on KVM\n"
	     ".SH SYNOPSIS\n"
	     ".B glint\\-vmm\n"
	     "[\\fIOPTION\\fR]... \\fB\\-\\-kernel\\fR \\fIFILE\\fR | \\fB\\-\\-firmware\\fR \\fIFILE\\fR | "
	     "\\fB\\-\\-restore\\fR \\fIFILE\\fR\n"
	     ".SH DESCRIPTION\n"
	     "Runs one virtual machine of the type " MACHINE_TYPE
	     " until its guest powers off. Everything that is named\n"
	     "is opened first; then the process locks itself in, and then the guest starts. It ends in order on "
	     "SIGTERM,\n"
	     "SIGINT and SIGHUP: what the guest wrote to its disks is made durable.\n"
	     ".PP\n"
	     "A \\fIFILE\\fR is a path, or fd=\\fIN\\fR for a descriptor that the caller left open. In a value with\n"
	     "fields a comma that belongs to a field is written twice. A \\fISIZE\\fR is bytes, or has one of the\n"
	     "suffixes K, M, G and T.\n"
	     ".SH OPTIONS");
	manual_options(config_options);
	puts(".SH CONFIGURATION FILE\n"
	     "A JSON object with the names above, without dashes: strings, numbers, true and false; an object for an\n"
	     "option that has fields, and a list where it may be given more than once.\n"
	     ".PP\n.EX\n"
	     "{\"memory\": \"2G\", \"cpus\": 2, \"kernel\": \"vmlinuz\",\n"
	     " \"disk\": [{\"path\": \"root.raw\"}, {\"path\": \"data.raw\", \"readonly\": true}]}\n"
	     ".EE\n"
	     ".SH EXIT STATUS\n"
	     "0 when the guest powered off or the machine was told to quit; 1 when it could not start or go on; 159 "
	     "when\n"
	     "the sandbox ended it, with a line that says why.\n"
	     ".SH EXAMPLES\n"
	     ".EX\n"
	     "glint\\-vmm \\-\\-memory 1G \\-\\-cpus 2 \\-\\-kernel vmlinuz \\-\\-initrd initrd.img "
	     "\\-\\-cmdline console=ttyS0\n"
	     "glint\\-vmm \\-\\-memory 2G \\-\\-firmware OVMF_CODE_4M.fd \\-\\-vars vm.vars \\-\\-disk vm.raw "
	     "\\-\\-control vm.sock\n"
	     ".EE");
}

static void put_completion(void)
{
	char pattern[128];

	puts("# Completion of glint-vmm for bash.\n"
	     "_glint_vmm()\n{\n"
	     "\tlocal option=${COMP_WORDS[COMP_CWORD - 1]} value=${COMP_WORDS[COMP_CWORD]} field\n"
	     "\t# '=' breaks words: --disk path = FILE\n"
	     "\t[[ $value == = ]] && value=\n"
	     "\t[[ $option == = ]] && option=${COMP_WORDS[COMP_CWORD - 2]}=\n"
	     "\tfield=${option##*,}\n"
	     "\tcase $option in");
	completion_values(config_options);
	printf("\t*=) case $field in\n");
	for (const struct option *option = config_options; option->name; option++)
		for (const struct option *field = option->kind == OPTION_GROUP ? option->group->fields : NULL;
		     field && field->name; field++) {
			snprintf(pattern, sizeof(pattern), "%s=", field->name);
			completion_value(pattern, field);
		}
	printf("\tesac ;;\n\t*) COMPREPLY=($(compgen -W \"");
	completion_names(config_options, "--", "");
	puts("\" -- \"$value\")) ;;\n\tesac\n}\ncomplete -F _glint_vmm glint-vmm");
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "man") == 0)
		put_manual();
	else if (argc == 2 && strcmp(argv[1], "bash") == 0)
		put_completion();
	else
		return 2;
	return ferror(stdout) || fflush(stdout) != 0;
}
