package lab

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Provider is the external storage of the cluster, for the disk template ext:
// block devices, of which a snapshot can be taken while a guest uses them, as
// on LVM, for which the kernel lacks the device mapper.
const Provider = "lab"

const (
	providerDir = "/srv/ganeti/extstorage/" + Provider
	providerLog = "/var/log/ganeti/extstorage"
	volumes     = ganetiStorage + "/ext"
)

//go:embed volume.sh
var volumeScript []byte

// addProvider puts the provider where Ganeti looks for one. Its volumes are
// files below ganetiStorage, which goes with the cluster.
func addProvider() error {
	for _, dir := range []string{providerDir, providerLog, volumes} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, action := range []string{"create", "attach", "detach", "remove", "grow", "setinfo", "verify", "snapshot"} {
		if err := os.WriteFile(filepath.Join(providerDir, action), volumeScript, 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(providerDir, "parameters.list"), nil, 0o644)
}

// volumeOf returns the file that holds an instance's nth disk, from the
// provider's volumes.
func volumeOf(instance string, n int) (string, error) {
	text, err := os.ReadFile(configFile)
	if err != nil {
		return "", err
	}
	var config struct {
		Instances map[string]struct {
			Name  string
			Disks []string
		}
		Disks map[string]struct {
			ID []any `json:"logical_id"`
		}
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return "", fmt.Errorf("cannot read %s: %w", configFile, err)
	}
	for _, i := range config.Instances {
		if i.Name != instance || n >= len(i.Disks) {
			continue
		}
		if id := config.Disks[i.Disks[n]].ID; len(id) == 2 && id[0] == Provider {
			return filepath.Join(volumes, fmt.Sprint(id[1])), nil
		}
	}
	return "", fmt.Errorf("%s has no disk %d in %s", instance, n, ganetiStorage)
}
