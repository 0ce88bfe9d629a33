// Package admin holds the operations of ganeti-image, the administrator's tool
// on a node.
//
// Left out in this version: the image store.
package admin

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"ganeti-instance-image/internal/hook"
	"ganeti-instance-image/internal/osapi"
	"ganeti-instance-image/internal/osscript"
	"ganeti-instance-image/internal/settings"
)

// Node is where the hooks of a node are told: its settings, those of a variant
// included where one is named.
type Node struct {
	Site    settings.Site
	Environ []string
	Variant string
}

// Hooks lists the node's hooks and what state each is in.
func (n Node) Hooks(ctx context.Context, out io.Writer) error {
	dir, hooks, err := n.hooks(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Hooks in %s, in the order they run (docs/hooks.md says when):\n", dir)
	for _, h := range hooks {
		state := "off"
		if h.Enabled {
			state = "on"
		}
		fmt.Fprintf(out, "  %-4s %-16s %s\n", state, nameIn(dir, h), describe(h))
	}
	return nil
}

// nameIn is a hook's name with the directory of its phase or variant, if it is in
// one: "ssh", "before-mount/check", "variants/debian-12/ssh".
func nameIn(dir string, h hook.Hook) string {
	if name, err := filepath.Rel(dir, h.Path); err == nil {
		return name
	}
	return h.Path
}

func describe(h hook.Hook) string {
	if !h.Ours {
		return "the site's own"
	}
	for _, b := range osscript.Builtins {
		if b.Name == h.Name {
			return b.What
		}
	}
	return ""
}

// SwitchHooks enables or disables hooks by name, all of them or, where one is
// not there, none.
func (n Node) SwitchHooks(ctx context.Context, names []string, enable bool) error {
	dir, hooks, err := n.hooks(ctx)
	if err != nil {
		return err
	}
	var chosen []hook.Hook
	for _, name := range names {
		i := slices.IndexFunc(hooks, func(h hook.Hook) bool { return nameIn(dir, h) == name })
		if i < 0 {
			return fmt.Errorf("cannot switch the hook %q: it is not in %s; see: ganeti-image hooks list", name, dir)
		}
		chosen = append(chosen, hooks[i])
	}
	for _, h := range chosen {
		if err := hook.SetEnabled(h, enable); err != nil {
			return err
		}
	}
	return nil
}

func (n Node) hooks(ctx context.Context) (string, []hook.Hook, error) {
	set, err := settings.Load(ctx, n.Site, osapi.Instance{Variant: n.Variant}, n.Environ)
	if err != nil {
		return "", nil, err
	}
	hooks, err := hook.ListAll(set.CustomizeDir, n.Variant)
	return set.CustomizeDir, hooks, err
}
