package settings

import (
	"fmt"
	"iter"
	"strings"
)

// setting is one row of the table.
type setting struct {
	name    string              // empty for what is an OS parameter only
	kind    kind                // what its text must be
	value   string              // built-in default; {sysconf}, {localstate} and {memory} are filled in
	param   string              // OS parameter; empty: none
	meaning string              // one line
	field   func(*Settings) any // what it sets; nil: nothing here
}

type section struct {
	title    string // empty: the default file does not list it, an earlier one speaks for it
	settings []setting
}

// table is every setting. Its order is that of parameters.list and of the
// default file. No OS parameter may name a file, directory or hook of the node.
var table = []section{
	{"The image", []setting{
		{"CDINSTALL", yesNo, "no", "cdinstall", "Touch no disk: the system is installed from a CD by hand", func(s *Settings) any { return &s.CDInstall }},
		{"IMAGE_NAME", component, "", "image_name", "Name of the image, without architecture and ending, as in debian-12", func(s *Settings) any { return &s.ImageName }},
		{"ARCH", arch, "", "arch", "Architecture in the image's file name, as in x86_64; empty: first no architecture, then the node's", func(s *Settings) any { return &s.Arch }},
		{"IMAGE_TYPE", imageType, "", "image_type", "Type of the image: tarball, dump, qemu (.img), qcow2 or raw; empty or auto: the one that is there", func(s *Settings) any { return &s.ImageType }},
		{"IMAGE_DIR", absPath, "{localstate}/cache/ganeti-instance-image", "", "Directory of the images", func(s *Settings) any { return &s.ImageDir }},
		{"IMAGE_FILE", absPath, "", "", "Path of one image, instead of IMAGE_DIR and IMAGE_NAME; one named later, by a variant or an OS parameter, wins", func(s *Settings) any { return &s.ImageFile }},
		{"IMAGE_URL", webURL, "", "image_url", "Where images are downloaded from: the URL of an image, or of the directory that has IMAGE_NAME", func(s *Settings) any { return &s.ImageURL }},
		{"IMAGE_VERIFY", yesNo, "yes", "", "Refuse a download that no checksum beside it vouches for", func(s *Settings) any { return &s.ImageVerify }},
		{"IMAGE_CLEANUP", yesNo, "no", "", "Remove a downloaded image after use", func(s *Settings) any { return &s.ImageCleanup }},
		{"CACHE_DIR", absPath, "{localstate}/cache/ganeti-instance-image", "", "Directory of downloaded images", func(s *Settings) any { return &s.CacheDir }},
	}},
	{"The disks", []setting{
		{"SWAP", yesNo, "yes", "swap", "Make a swap partition (tarball and dump)", func(s *Settings) any { return &s.Swap }},
		{"SWAP_SIZE", sizeMiB, "{memory}", "swap_size", "Size of the swap partition in MiB, or with K, M, G or T; empty: as much as the instance has memory", func(s *Settings) any { return &s.SwapSize }},
		{"BOOT_SIZE", sizeMiB, "512", "boot_size", "Size of the /boot partition in MiB, or with K, M, G or T (tarball and dump)", func(s *Settings) any { return &s.BootSize }},
		{"FILESYSTEM", filesystem, "ext4", "filesystem", "Filesystem to make: ext2, ext3, ext4, xfs or btrfs (tarball and dump)", func(s *Settings) any { return &s.Filesystem }},
		{"MKFS_OPTIONS", options, "", "", "Arguments for the root's mkfs, in place of ours that leave out what an old guest cannot read (tarball and dump)", func(s *Settings) any { return &s.MkfsOptions }},
		{"PARTITION_TABLE", partitionTable, "auto", "partition_table", "Partition table to make: msdos, gpt or auto: msdos, but gpt above 2 TiB and for a guest that boots by UEFI only (tarball and dump)", func(s *Settings) any { return &s.PartitionTable }},
		{"ESP_SIZE", sizeMiB, "100", "esp_size", "Size of the EFI system partition in MiB, or with K, M, G or T, made where a boot loader is to be installed (tarball and dump)", func(s *Settings) any { return &s.ESPSize }},
		{"GRUB", grub, "no", "grub", "auto: make a guest from a tarball or dump boot by itself, as the hook grub does; no: only where that hook is enabled", func(s *Settings) any { return &s.GRUB }},
		{"FDISK", anyText, "", "", "Obsolete and without effect: no partitioning program is needed", nil},
		{"KERNEL_ARGS", oneLine, "", "kernel_args", "More arguments for the guest's kernel (hook grub)", func(s *Settings) any { return &s.KernelArgs }},
		{"NOMOUNT", yesNo, "no", "nomount", "Write the image and nothing else: no growing, no hooks; for systems that are not Linux", func(s *Settings) any { return &s.NoMount }},
		{"GROW", yesNo, "yes", "grow", "Grow the last partition of a disk image and its filesystem to the end of the disk", func(s *Settings) any { return &s.Grow }},
		{"SEED_DISK", diskName, "", "seed_disk", "Disk that gets the seed for cloud-init: its number, from 1 on, or its name; empty: the seed is in the guest (hook cloud-init)", func(s *Settings) any { return &s.SeedDisk }},
		{"DISK_1", diskUse, "", "disk_1", "Use of disk 1: swap, seed (as SEED_DISK=1) or data:FILESYSTEM:MOUNTPOINT, made anew and on a reinstall kept; empty: it is left as it is; DISK_2 to DISK_15 likewise", func(s *Settings) any { return &s.DiskUses[1] }},
	}},
	{"", moreDiskUses()},
	{"The guest", []setting{
		{"CUSTOMIZE_DIR", absPath, "{sysconf}/ganeti/instance-image/hooks", "", "Directory of the hooks", func(s *Settings) any { return &s.CustomizeDir }},
		{"OVERLAYS_DIR", absPath, "{sysconf}/ganeti/instance-image/overlays", "", "Directory of the overlays", func(s *Settings) any { return &s.OverlaysDir }},
		{"OVERLAY", component, "", "overlay", "Overlay to copy into the guest: the name of a directory in OVERLAYS_DIR (hook overlays)", func(s *Settings) any { return &s.Overlay }},
		{"NETWORKS_DIR", absPath, "{sysconf}/ganeti/instance-image/networks", "", "Directory of the network files: instances/FQDN and subnets/NAME", func(s *Settings) any { return &s.NetworksDir }},
		{"SUBNET", component, "", "subnet", "Subnet of the first network card: the name of a file in NETWORKS_DIR/subnets", func(s *Settings) any { return &s.Subnet }},
		{"IDENTITY", tristate, "", "identity", "Whether the guest loses what must be each system's own, such as the machine-id: yes or no; empty: yes for a tarball or dump and where a hook is enabled", func(s *Settings) any { return &s.Identity }},
		{"IDENTITY_KEEP", identityParts, "", "identity_keep", "What of that it keeps, with spaces between: " + strings.Join(IdentityParts, ", "), func(s *Settings) any { return &s.IdentityKeep }},
		{"HOOK_TIMEOUT", seconds, "600", "", "Seconds after which a hook is ended; 0: never", func(s *Settings) any { return &s.HookTimeout }},
		{"INITRAMFS", initramfs, "no", "", "rebuild: have the guest's own programs make its initramfs anew, shut off from the node and the network; no: run nothing of the guest's", func(s *Settings) any { return &s.Initramfs }},
		{"VARIANTS_DIR", absPath, "{sysconf}/ganeti/instance-image/variants", "", "Directory of the variants, NAME.conf", func(s *Settings) any { return &s.VariantsDir }},
	}},
	{"Backups: gnt-backup export and import", []setting{
		{"EXPORT_FORMAT", exportFormat, "tar", "", "What export writes: tar (what the disk holds, checksummed), raw, qcow2, or dump (tar of boot.dump and root.dump, as the Bash version wrote)", func(s *Settings) any { return &s.ExportFormat }},
		{"EXPORT_COMPRESSION", exportCompression, "zstd", "", "How an export of the format tar is compressed: zstd or none, as where Ganeti compresses it", func(s *Settings) any { return &s.ExportCompression }},
		{"EXPORT_DIR", anyText, "", "", "Obsolete and without effect: an export needs no temporary files", nil},
		{"IMPORT_IDENTITY", importIdentity, "keep", "import_identity", "What an imported guest is: keep: the one that was exported, with its keys and ids; renew: another one, with new ssh host keys, machine-id and the like", func(s *Settings) any { return &s.ImportIdentity }},
		{"IMPORT_DIR", absPath, "{localstate}/tmp", "", "Directory for the one thing that an import may need room for: a qcow2 image of the Bash version whose tables lie behind its data", func(s *Settings) any { return &s.ImportDir }},
	}},
	{"Users and files of the guest, with or without cloud-init", []setting{
		{"ROOT_PASSWORD", password, "", "root_password", "Password of root, or of Administrator; only one of ROOT_PASSWORD and ROOT_PASSWORD_HASH counts, the one set last", func(s *Settings) any { return &s.RootAccess.Password }},
		{"ROOT_PASSWORD_HASH", passwordHash, "", "root_password_hash", "Password of root as a hash of crypt(5), from: openssl passwd -6", func(s *Settings) any { return &s.RootAccess.PasswordHash }},
		{"USER_NAME", userName, "", "user_name", "User to make in the guest, unless there is one of that name", func(s *Settings) any { return &s.User }},
		{"USER_PASSWORD", password, "", "user_password", "Password of USER_NAME; only one of USER_PASSWORD and USER_PASSWORD_HASH counts, the one set last", func(s *Settings) any { return &s.UserAccess.Password }},
		{"USER_PASSWORD_HASH", passwordHash, "", "user_password_hash", "Password of USER_NAME as a hash of crypt(5)", func(s *Settings) any { return &s.UserAccess.PasswordHash }},
		{"SSH_KEYS", sshKeys, "", "ssh_keys", "SSH public keys of USER_NAME, or where there is none of root, one a line", func(s *Settings) any { return &s.SSHKeys }},
		{"SSH_KEYS_URL", webURL, "", "ssh_keys_url", "URL of more such keys", func(s *Settings) any { return &s.SSHKeysURL }},
		{"GUEST_FILES", guestFiles, "", "guest_files", "Files to put into the guest, a list in JSON: [{\"path\": \"/etc/motd\", \"text\": \"hello\", \"owner\": \"root\", \"group\": \"root\", \"mode\": \"0644\"}]; contents in place of text is in base64", func(s *Settings) any { return &s.GuestFiles }},
	}},
	{"cloud-init (hook cloud-init)", []setting{
		{"CINIT_USER", userName, "", "cinit_user", "User to make in the guest; empty: the image's own default user", func(s *Settings) any { return &s.Cinit.User }},
		{"CINIT_SSH_KEY", sshKeys, "", "cinit_ssh_key", "SSH public keys of that user, one a line", func(s *Settings) any { return &s.Cinit.SSHKeys }},
		{"CINIT_SSH_PWAUTH", tristate, "", "cinit_ssh_pwauth", "Whether sshd takes passwords: yes or no; empty: as the image has it", func(s *Settings) any { return &s.Cinit.SSHPasswordAuth }},
		{"CINIT_DISABLE_ROOT", tristate, "", "cinit_disable_root", "Whether root may not log in by SSH: yes or no; empty: as the image has it", func(s *Settings) any { return &s.Cinit.DisableRoot }},
		{"CINIT_MANAGE_RESOLV_CONF", tristate, "", "cinit_manage_resolv_conf", "Whether cloud-init writes /etc/resolv.conf: yes or no; empty: as the image has it", func(s *Settings) any { return &s.Cinit.ManageResolvConf }},
		{"DNS_SERVERS", addresses, "", "dns_servers", "Addresses of name servers, with spaces between", func(s *Settings) any { return &s.DNSServers }},
		{"DNS_SEARCH", domains, "", "dns_search", "Domains to search for names, with spaces between", func(s *Settings) any { return &s.DNSSearch }},
		{"USER_DATA", userData, "", "user_data", "user-data for cloud-init; only one of USER_DATA, USER_DATA_FILE and USER_DATA_URL counts, the one set last", func(s *Settings) any { return &s.UserData }},
		{"", base64Text, "", "user_data_base64", "user-data for cloud-init, in base64", nil},
		{"USER_DATA_FILE", absPath, "", "", "Path of a file of user-data", func(s *Settings) any { return &s.UserDataFile }},
		{"USER_DATA_URL", webURL, "", "user_data_url", "URL of user-data", func(s *Settings) any { return &s.UserDataURL }},
	}},
	{"What OS parameters may do", []setting{
		{"ALLOW_URLS", urlPrefixes, "", "", "URL prefixes that the OS parameters image_url, user_data_url and ssh_keys_url must be under, with spaces between; empty: none is allowed", func(s *Settings) any { return &s.AllowURLs }},
		{"DENY_PARAMETERS", paramNames, "", "", "OS parameters that are refused, with spaces between", func(s *Settings) any { return &s.DenyParameters }},
		{"", anyText, "", "os-image", "Set by Ganeti itself (--os-image): it has written the disk, which is only customised", nil},
	}},
	{"The program", []setting{
		{"SHELL_SETTINGS", yesNo, "no", "", "Have bash evaluate a settings file of more than assignments; only in this file, and only for files that none but root can write", func(s *Settings) any { return &s.ShellSettings }},
		{"IMAGE_DEBUG", yesNo, "no", "", "Log every step", func(s *Settings) any { return &s.Debug }},
	}},
}

// moreDiskUses are the settings for the disks from 2 on.
func moreDiskUses() []setting {
	var rows []setting
	for n := 2; n < MaxDisks; n++ {
		rows = append(rows, setting{fmt.Sprintf("DISK_%d", n), diskUse, "", fmt.Sprintf("disk_%d", n), "Use of the disk, as disk_1",
			func(s *Settings) any { return &s.DiskUses[n] }})
	}
	return rows
}

// known is every row that is a setting.
func known() iter.Seq2[int, setting] {
	return rows(func(s setting) bool { return s.name != "" })
}

// parameters is every row that is an OS parameter.
func parameters() iter.Seq2[int, setting] {
	return rows(func(s setting) bool { return s.param != "" })
}

// rows counts and yields the rows that are wanted.
func rows(wanted func(setting) bool) iter.Seq2[int, setting] {
	return func(yield func(int, setting) bool) {
		n := 0
		for _, section := range table {
			for _, row := range section.settings {
				if !wanted(row) {
					continue
				}
				if !yield(n, row) {
					return
				}
				n++
			}
		}
	}
}

// find is the row of a setting.
func find(name string) (setting, bool) {
	for _, k := range known() {
		if k.name == name {
			return k, true
		}
	}
	return setting{}, false
}
