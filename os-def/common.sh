# common.sh: for a site's own hooks, which begin with ". common.sh".
#
# The settings and Ganeti's variables are in a hook's environment already; this
# file adds the functions and tool names that hooks have relied on. Nothing here
# runs a program of the guest.

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
instance="${INSTANCE_NAME:-}"
blockdev="${BLOCKDEV:-}"
old_name="${OLD_INSTANCE_NAME:-}"

# log_error TEXT...: write to the log of the installation.
log_error() {
    printf '%s\n' "$*" >&2
}

# debug COMMAND...: run a command only where IMAGE_DEBUG is set.
debug() {
    case "${IMAGE_DEBUG:-no}" in
        1 | yes) "$@" ;;
    esac
    return 0
}

# cleanup: run the commands in the array CLEANUP, the last one first, each of
# them whatever became of the others. It is run when the hook ends.
CLEANUP=()
cleanup() {
    local i
    for ((i = ${#CLEANUP[@]} - 1; i >= 0; i--)); do
        # An entry is a command with its arguments in one string.
        eval "${CLEANUP[i]}" || log_error "cannot run: ${CLEANUP[i]}"
    done
    CLEANUP=()
}
trap cleanup EXIT

# os_release_field TARGET NAME: one field of the guest's os-release. A link that
# leads out of the guest is not followed.
os_release_field() {
    local root file
    root=$(realpath -- "$1") || return
    for file in "$1/etc/os-release" "$1/usr/lib/os-release"; do
        file=$(realpath -e -- "$file" 2>/dev/null) || continue
        if [ -f "$file" ] && [ "${file#"$root"/}" != "$file" ]; then
            sed -n "s/^$2=//p" "$file" | tr -d "\"'" | head -n 1
            return
        fi
    done
}

# get_os TARGET: sets OPERATING_SYSTEM to the guest's distribution.
get_os() {
    OPERATING_SYSTEM="$(os_release_field "$1" ID | tr '[:upper:]' '[:lower:]')"
    case "$OPERATING_SYSTEM" in
        rhel) OPERATING_SYSTEM="redhat" ;;
    esac
}

# get_os_release TARGET: sets OS_RELEASE to the distribution's version.
get_os_release() {
    OS_RELEASE="$(os_release_field "$1" VERSION_ID)"
}

# get_os_type TARGET: sets OS_TYPE to the guest's family: redhat, debian, gentoo
# or suse.
get_os_type() {
    local like
    like=" $(os_release_field "$1" ID) $(os_release_field "$1" ID_LIKE) "
    OS_TYPE=""
    case "$like" in
        *" debian "* | *" ubuntu "*) OS_TYPE="debian" ;;
        *" rhel "* | *" fedora "* | *" centos "*) OS_TYPE="redhat" ;;
        *" gentoo "*) OS_TYPE="gentoo" ;;
        *" suse "* | *" opensuse "*) OS_TYPE="suse" ;;
    esac
    if [ -z "$OS_TYPE" ]; then
        if [ -e "$1/etc/redhat-release" ]; then
            OS_TYPE="redhat"
        elif [ -e "$1/etc/debian_version" ]; then
            OS_TYPE="debian"
        elif [ -e "$1/etc/gentoo-release" ]; then
            OS_TYPE="gentoo"
        elif [ -e "$1/etc/SuSE-release" ]; then
            OS_TYPE="suse"
        fi
    fi
}
