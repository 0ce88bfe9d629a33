package osscript

import (
	"slices"
	"testing"

	"ganeti-instance-image/internal/guest"
	"ganeti-instance-image/internal/settings"
)

// What a setting may keep is what the guest can lose: neither package can ask
// the other.
func TestIdentityParts(t *testing.T) {
	if !slices.Equal(settings.IdentityParts, guest.IdentityParts) {
		t.Errorf("settings know %v, guests %v", settings.IdentityParts, guest.IdentityParts)
	}
}
