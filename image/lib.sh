# What makes initramfs archives and UKIs, for the host and for the guest that is carried along. Sourced, never run, inside
# the build root; $work is a folder of the caller's, SOURCE_DATE_EPOCH the time of all files.

# cpio_of FOLDER >FILE: an initramfs archive, the same bytes for the same files.
cpio_of() {
    find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet --create --format=newc --owner=0:0 --reproducible)
}

# modules_into FOLDER KERNEL NAME...: modules and what they need, numbered in the order to load them.
modules_into() {
    local to=$1 from=$2 number=10 path
    shift 2
    mkdir -p "$to"
    modprobe -d "$from" -S "$(cat "$from/version")" --all --show-depends "$@" | awk '!seen[$2]++ { print $2 }' >"$work/order"
    while read -r path; do
        cp "$path" "$to/$number-$(basename "$path")"
        number=$((number + 1))
    done <"$work/order"
}

# uki KERNEL INITRD COMMAND_LINE OS_RELEASE OUTPUT [OPTION]...
uki() {
    ukify build --linux="$1/vmlinuz" --initrd="$2" --cmdline="$3" --os-release="@$4" --uname="$(cat "$1/version")" \
        --stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub --output="$5" "${@:6}" >"$work/ukify.log" 2>&1 ||
        { cat "$work/ukify.log" >&2; die "ukify failed: its words are above"; }
}
