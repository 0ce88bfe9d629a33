# common.sh: for a site's own hooks, which begin with ". common.sh".
#
# The settings and Ganeti's variables are in a hook's environment already; this
# file adds the functions and tool names that hooks have relied on. Nothing here
# runs a program of the guest, and no link is followed that leads out of it.

AWK="awk"
MKDIR_P="mkdir -p"
LOSETUP="losetup"
KPARTX="kpartx"
SFDISK="sfdisk"
PARTED="parted"
QEMU_IMG="qemu-img"
DUMP="dump"
CURL="curl"
SHA1SUM="sha1sum"
VOL_ID="blkid -c /dev/null -o value -s UUID"
VOL_TYPE="blkid -c /dev/null -o value -s TYPE"

SCRIPT_NAME="${0##*/}"
INSTANCE_MEM="${INSTANCE_BE_memory:-${INSTANCE_BE_maxmem:-}}"
KERNEL_PATH="${INSTANCE_HV_kernel_path:-}"
VARIANT_CONFIG="${OS_VARIANT:+${VARIANTS_DIR:-}/$OS_VARIANT.conf}"
instance="${INSTANCE_NAME:-}"
blockdev="${BLOCKDEV:-}"
old_name="${OLD_INSTANCE_NAME:-}"
root_dev="${ROOT_DEV:-}"
boot_dev="${BOOT_DEV:-}"
swap_dev=""

# log_error TEXT...: write to the log of the installation.
log_error() {
    printf '%s\n' "$*" >&2
}

# image_fail TEXT...: log it and end the hook as failed.
image_fail() {
    log_error "$@"
    exit 1
}

# debug COMMAND...: run a command only where IMAGE_DEBUG is set.
debug() {
    case "${IMAGE_DEBUG:-no}" in
        1 | yes) "$@" ;;
    esac
    return 0
}

# cleanup: run the commands in the array CLEANUP, the last one first, each of
# them whatever became of the others, and unmap what map_disk0 mapped. It is run
# when the hook ends.
CLEANUP=()
cleanup() {
    local i
    for ((i = ${#CLEANUP[@]} - 1; i >= 0; i--)); do
        # An entry is a command with its arguments in one string.
        eval "${CLEANUP[i]}" || log_error "cannot run: ${CLEANUP[i]}"
    done
    CLEANUP=()
    if [ -d "$MAPS" ]; then
        for i in "$MAPS"/*; do unmap_dir "$i"; done
        rmdir "$MAPS"
    fi
}
trap cleanup EXIT

# get_api10_arguments: the names Ganeti's variables have had in scripts; they are
# set above already.
get_api10_arguments() {
    [ -n "$instance" ] || image_fail "INSTANCE_NAME is not set: hooks are run by create"
}

# get_api5_arguments: options instead of variables, which no Ganeti of today uses.
get_api5_arguments() {
    image_fail "this is not called by the OS interface of version 5"
}

# guest_path TARGET PATH: print where PATH of the guest below TARGET is on the
# node. It fails where a link leads out of the guest. The file need not exist.
guest_path() {
    local root real
    root=$(realpath -e -- "$1") || return
    real=$(realpath -m -- "$1/$2") || return
    root="${root%/}"
    case "$real" in
        "$root" | "$root"/*) printf '%s\n' "$real" ;;
        *) return 1 ;;
    esac
}

# guest_file TARGET PATH: likewise, for a regular file that is there.
guest_file() {
    local file
    file=$(guest_path "$1" "$2") && [ -f "$file" ] && printf '%s\n' "$file"
}

# guest_new TARGET PATH: likewise, for a regular file that may be made; its
# directory is there.
guest_new() {
    local file
    file=$(guest_path "$1" "$2") || return
    [ -d "${file%/*}" ] && { [ -f "$file" ] || [ ! -e "$file" ]; } && printf '%s\n' "$file"
}

# os_release_field TARGET NAME: one field of the guest's os-release.
os_release_field() {
    local file
    file=$(guest_file "$1" /etc/os-release) || file=$(guest_file "$1" /usr/lib/os-release) || return 0
    sed -n "s/^$2=//p" "$file" | tr -d "\"'" | head -n 1
}

# guest_first_line TARGET PATH: the first line of a file of the guest.
guest_first_line() {
    local file
    file=$(guest_file "$1" "$2") && head -c 200 "$file" | head -n 1
}

# get_os TARGET: sets OPERATING_SYSTEM to the guest's distribution: debian,
# ubuntu, centos, redhat, fedora, gentoo, or as its os-release has it.
get_os() {
    local line
    [ -n "${1:-}" ] || image_fail "get_os: which directory is the guest in?"
    OPERATING_SYSTEM="$(os_release_field "$1" ID | tr '[:upper:]' '[:lower:]')"
    case "$OPERATING_SYSTEM" in
        rhel) OPERATING_SYSTEM="redhat" ;;
        "") # from before os-release
            if guest_file "$1" /etc/debian_version >/dev/null; then
                OPERATING_SYSTEM="debian"
            elif guest_file "$1" /etc/gentoo-release >/dev/null; then
                OPERATING_SYSTEM="gentoo"
            elif guest_file "$1" /etc/fedora-release >/dev/null; then
                OPERATING_SYSTEM="fedora"
            elif line=$(guest_first_line "$1" /etc/redhat-release); then
                OPERATING_SYSTEM="redhat"
                case "$line" in
                    [Cc]ent[Oo][Ss]*) OPERATING_SYSTEM="centos" ;;
                esac
            fi
            ;;
    esac
}

# get_os_release TARGET: sets OS_RELEASE to the distribution's version.
get_os_release() {
    [ -n "${1:-}" ] || image_fail "get_os_release: which directory is the guest in?"
    OS_RELEASE="$(os_release_field "$1" VERSION_ID)"
    [ -n "$OS_RELEASE" ] || OS_RELEASE="$(guest_first_line "$1" /etc/debian_version)" ||
        OS_RELEASE="$(guest_first_line "$1" /etc/redhat-release | sed -n 's/.* release \([0-9.]*\).*/\1/p')"
}

# get_os_type TARGET: sets OS_TYPE to the guest's family: redhat, debian, gentoo
# or suse; "" where it is none of them.
get_os_type() {
    local like
    [ -n "${1:-}" ] || image_fail "get_os_type: which directory is the guest in?"
    like=" $(os_release_field "$1" ID) $(os_release_field "$1" ID_LIKE) "
    OS_TYPE=""
    case "$like" in
        *" debian "* | *" ubuntu "*) OS_TYPE="debian" ;;
        *" rhel "* | *" fedora "* | *" centos "*) OS_TYPE="redhat" ;;
        *" gentoo "*) OS_TYPE="gentoo" ;;
        *" suse "* | *" opensuse "*) OS_TYPE="suse" ;;
    esac
    if [ -z "$OS_TYPE" ]; then
        if guest_file "$1" /etc/redhat-release >/dev/null; then
            OS_TYPE="redhat"
        elif guest_file "$1" /etc/debian_version >/dev/null; then
            OS_TYPE="debian"
        elif guest_file "$1" /etc/gentoo-release >/dev/null; then
            OS_TYPE="gentoo"
        elif guest_file "$1" /etc/SuSE-release >/dev/null; then
            OS_TYPE="suse"
        fi
    fi
}

# boots_itself: whether the kernel is one in the guest.
boots_itself() {
    [ -z "$KERNEL_PATH" ] || [ "$KERNEL_PATH" = /bin/false ]
}

# size_mib SIZE: the number of MiB in a size as settings give it.
size_mib() {
    case "$1" in
        *[!0-9]*) echo $(($(numfmt --from=auto "$(printf '%s' "$1" | sed 's/B$//; s/[Mm]$/Mi/; s/[Gg]$/Gi/')") >> 20)) ;;
        *) printf '%s\n' "$1" ;;
    esac
}

# format_disk0 DISK: make a new partition table, all on DISK is lost: /boot where
# the guest has a kernel of its own, swap where SWAP=yes, and the root.
format_disk0() {
    local disk="$1"
    {
        echo "label: dos"
        if boots_itself; then echo "size=$(size_mib "${BOOT_SIZE:-100}")MiB, type=83, bootable"; fi
        if [ "${SWAP:-yes}" = yes ]; then echo "size=$(size_mib "${SWAP_SIZE:-$INSTANCE_MEM}")MiB, type=82"; fi
        if boots_itself; then echo "type=83"; else echo "type=83, bootable"; fi
    } | sfdisk --quiet --no-reread --no-tell-kernel --wipe always --wipe-partitions always "$disk"
}

format_disk0_sfdisk() { format_disk0 "$@"; }
format_disk0_parted() { format_disk0 "$@"; }

# mkfs_disk0: make file systems on root_dev, boot_dev and swap_dev; all on them
# is lost.
mkfs_disk0() {
    make_filesystem root "$root_dev"
    if [ -n "$boot_dev" ]; then make_filesystem boot "$boot_dev"; fi
    if [ -n "$swap_dev" ]; then mkswap --force "$swap_dev" >/dev/null; fi
    sync
}

make_filesystem() {
    case "${FILESYSTEM:-ext4}" in
        xfs) mkfs.xfs -q -f -L "$1" "$2" ;;
        btrfs) mkfs.btrfs -q -f -L "$1" "$2" ;;
        *) "mkfs.${FILESYSTEM:-ext4}" -q -F -L "$1" "$2" ;;
    esac
}

# mount_disk0 DIR: mount root_dev on DIR, and boot_dev below it, until the hook
# ends. A guest that is mounted already, below TARGET, must not be mounted again.
mount_disk0() {
    local boot
    mount "$root_dev" "$1"
    CLEANUP+=("umount '$1'")
    if [ -n "$boot_dev" ]; then
        boot=$(guest_path "$1" /boot) || image_fail "$1/boot leads out of the guest"
        $MKDIR_P "$boot"
        mount "$boot_dev" "$boot"
        CLEANUP+=("umount '$boot'")
    fi
    CLEANUP+=("sync")
}

# MAPS is where names for partitions are. $$ is the hook's own id also in $(...).
MAPS="/run/ganeti-instance-image/run/maps.$$"

map_name() {
    printf '%s/%s\n' "$MAPS" "$(printf '%s' "$1" | tr / _)"
}

# map_disk0 DISK: print a NAME so that NAME-1, NAME-2 ... are devices of DISK's
# partitions: loop devices, which need neither kpartx nor a kernel that knows
# the table. A partition that is mounted below TARGET is the device that is
# mounted. They go with unmap_disk0, or when the hook ends.
map_disk0() {
    local disk="$1" dir number start sectors kind loop
    dir=$(map_name "$disk")
    unmap_dir "$dir"
    mkdir -p -m 0700 "$MAPS" && mkdir "$dir" || return
    while read -r number start sectors kind; do
        case "$kind" in
            0x5 | 0xf | 0x85 | "") continue ;; # holds others, which show through
        esac
        loop=$(loop_at "$disk" $((start * 512)))
        if [ -z "$loop" ]; then
            loop=$(losetup --find --show --offset $((start * 512)) --sizelimit $((sectors * 512)) "$disk") || return
            printf '%s\n' "$loop" >>"$dir/own"
        fi
        ln -s "$loop" "$dir/disk0-$number"
    done < <(partx --raw --noheadings --output NR,START,SECTORS,TYPE "$disk")
    [ -n "$(ls "$dir")" ] || image_fail "cannot map $disk: it has no partitions"
    printf '%s\n' "$dir/disk0"
}

# loop_at DISK OFFSET: the loop device that is there over a disk, or over the
# file that the disk itself is a loop device of.
loop_at() {
    local file
    for file in "$1" "$(losetup --noheadings --output BACK-FILE "$1" 2>/dev/null)"; do
        [ -z "$file" ] || losetup --noheadings --raw --output NAME,OFFSET,SIZELIMIT --associated "$file" |
            awk -v offset="$2" '$2 == offset && $3 > 0 { print $1 }'
    done | head -n 1
}

# unmap_disk0 DISK: undo map_disk0.
unmap_disk0() {
    unmap_dir "$(map_name "$1")"
}

unmap_dir() {
    local loop
    [ -d "$1" ] || return 0
    if [ -f "$1/own" ]; then
        while read -r loop; do losetup --detach "$loop"; done <"$1/own"
    fi
    rm -r "$1"
}

# map_partition NAME root|boot|swap: print the device of what map_disk0 named;
# nothing where the guest has none. Sets root_dev, boot_dev and swap_dev too.
map_partition() {
    local name="$1" number=0
    root_dev="" boot_dev="" swap_dev=""
    if [ -n "${ROOT_DEV:-}" ]; then # the disk as it is
        root_dev="$name-${ROOT_DEV##*-}"
        if [ -n "${BOOT_DEV:-}" ]; then boot_dev="$name-${BOOT_DEV##*-}"; fi
        for number in "$name"-*; do
            if [ "$($VOL_TYPE "$number")" = swap ]; then swap_dev="$number"; fi
        done
    else # as format_disk0 makes it
        if boots_itself; then boot_dev="$name-$((++number))"; fi
        if [ "${SWAP:-yes}" = yes ]; then swap_dev="$name-$((++number))"; fi
        root_dev="$name-$((++number))"
    fi
    case "$2" in
        root) printf '%s\n' "$root_dev" ;;
        boot) printf '%s\n' "$boot_dev" ;;
        swap) printf '%s\n' "$swap_dev" ;;
    esac
}

# fstab_line DEVICE UUID MOUNTPOINT PASS: one line of fstab(5).
fstab_line() {
    local uuid="$2" kind
    [ -n "$uuid" ] || uuid=$($VOL_ID "$1")
    kind=$($VOL_TYPE "$1") || kind="${FILESYSTEM:-ext4}"
    case "$kind" in
        btrfs | xfs) printf 'UUID=%s\t%s\t%s\tdefaults\t0\t0\n' "$uuid" "$3" "$kind" ;;
        *) printf 'UUID=%s\t%s\t%s\tdefaults\t0\t%s\n' "$uuid" "$3" "$kind" "$4" ;;
    esac
}

# setup_fstab TARGET: write a new fstab, of root_dev, boot_dev and swap_dev.
setup_fstab() {
    local file
    file=$(guest_new "$1" /etc/fstab) || image_fail "cannot write $1/etc/fstab: it is no file of the guest"
    get_os_type "$1"
    {
        fstab_line "$root_dev" "${root_uuid:-}" / 1
        if [ -n "$boot_dev" ]; then fstab_line "$boot_dev" "${boot_uuid:-}" /boot 2; fi
        if [ -n "$swap_dev" ]; then fstab_line "$swap_dev" "${swap_uuid:-}" none 0; fi
        if [ "$OS_TYPE" = redhat ] && [ ! -d "$1/usr/lib/systemd" ]; then
            printf 'tmpfs\t/dev/shm\ttmpfs\tdefaults\t0\t0\ndevpts\t/dev/pts\tdevpts\tgid=5,mode=620\t0\t0\n'
            printf 'sysfs\t/sys\tsysfs\tdefaults\t0\t0\nproc\t/proc\tproc\tdefaults\t0\t0\n'
        fi
    } >"$file"
}

# setup_console TARGET: have the guest offer a login on its first serial port.
# create does so by itself; this is for hooks that replace the guest's files.
setup_console() {
    local file
    [ -n "${1:-}" ] || image_fail "setup_console: which directory is the guest in?"
    if file=$(guest_path "$1" /etc/systemd/system/getty.target.wants) && [ -e "$1/usr/lib/systemd/system/serial-getty@.service" ]; then
        $MKDIR_P "$file"
        ln -sf /usr/lib/systemd/system/serial-getty@.service "$file/serial-getty@ttyS0.service"
    elif file=$(guest_file "$1" /etc/inittab); then
        sed -i -e '/^[^#]*ttyS0/d' "$file"
        printf 'T0:2345:respawn:%s -L 115200 ttyS0 vt100\n' "$(getty_of "$1")" >>"$file"
    elif [ -d "$1/etc/init" ] && file=$(guest_new "$1" /etc/init/ttyS0.conf); then
        printf 'start on stopped rc RUNLEVEL=[2345]\nstop on runlevel [!2345]\nrespawn\nexec %s -L 115200 ttyS0 vt100\n' "$(getty_of "$1")" >"$file"
    elif [ -d "$1/etc/event.d" ] && file=$(guest_new "$1" /etc/event.d/ttyS0); then
        printf 'start on runlevel 2\nstart on runlevel 3\nstop on shutdown\nrespawn\nexec %s -L 115200 ttyS0 vt100\n' "$(getty_of "$1")" >"$file"
    else
        log_error "cannot set up a serial console: nothing in the guest that would start one is known"
    fi
    if file=$(guest_file "$1" /etc/securetty) && ! grep -qx ttyS0 "$file"; then
        echo ttyS0 >>"$file"
    fi
}

getty_of() {
    if [ -e "$1/sbin/agetty" ] || [ -L "$1/sbin/agetty" ]; then echo /sbin/agetty; else echo /sbin/getty; fi
}
