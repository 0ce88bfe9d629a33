#!/bin/bash
# An external storage provider of Ganeti's: its name is what to do, $VOL_NAME of
# which volume. A volume is a file, and a loop device while it is attached.
set -eu
dir=/srv/ganeti-instance-image-lab/ext
volume=$dir/${VOL_NAME-}

device() { losetup --noheadings --output NAME --associated "$1"; }

# What has the device open stands still while the file is copied, with its holes:
# a snapshot is of one moment.
snapshot() {
	holders=
	from=$(device "$volume")
	if [ -n "$from" ]; then
		holders=$(find /proc/[0-9]*/fd -lname "$from" 2>/dev/null | cut -d/ -f3 | sort -u)
	fi
	trap '[ -z "$holders" ] || kill -CONT $holders' EXIT
	[ -z "$holders" ] || kill -STOP $holders
	[ -z "$from" ] || blockdev --flushbufs "$from"
	cp "$volume" "$dir/$VOL_SNAPSHOT_NAME"
}

exec 9> "$dir/lock"
flock 9
case ${0##*/} in
create) truncate --size="${VOL_SIZE}M" "$volume" ;;
remove) rm -f "$volume" ;;
attach)
	at=$(device "$volume")
	printf %s "${at:-$(losetup --find --show "$volume")}" ;;
detach)
	at=$(device "$volume")
	[ -z "$at" ] || losetup --detach "$at" ;;
grow)
	truncate --size="${VOL_NEW_SIZE}M" "$volume"
	at=$(device "$volume")
	[ -z "$at" ] || losetup --set-capacity "$at" ;;
snapshot) snapshot ;;
esac
