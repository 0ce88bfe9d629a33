# ganeti-instance-image: build, install, test. "make help" lists the targets.

prefix        = /usr
sysconfdir    = /etc
localstatedir = /var
osdir         = $(prefix)/share/ganeti/os
sbindir       = $(prefix)/sbin
libexecdir    = $(prefix)/lib/ganeti-instance-image
docdir        = $(prefix)/share/doc/ganeti-instance-image
DESTDIR       =

GO      ?= go
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null || echo 0.8.0)
BUILD    = build

program  = $(libexecdir)/instance-image
confdir  = $(sysconfdir)/ganeti/instance-image
defdir   = $(osdir)/image
cli      = ganeti-instance-image/internal/cli
ldflags  = -s -w -X $(cli).Version=$(VERSION) -X $(cli).Sysconf=$(sysconfdir) -X $(cli).Localstate=$(localstatedir)
hooks    = $(notdir $(wildcard hooks/*))

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
NFPM        = github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4

.PHONY: help build install lint test demo matrix bench packages clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST)

build: ## Build the program: build/instance-image
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(ldflags)' -o $(BUILD)/instance-image ./cmd/instance-image

install: build ## Install to DESTDIR; nothing that is below sysconfdir already is changed
	install -d -m 0755 $(DESTDIR)$(libexecdir) $(DESTDIR)$(sbindir) $(DESTDIR)$(defdir)/tools $(DESTDIR)$(docdir)
	install -m 0755 $(BUILD)/instance-image $(DESTDIR)$(program)
	for name in create import export rename verify; do ln -sfn $(program) $(DESTDIR)$(defdir)/$$name; done
	ln -sfn $(program) $(DESTDIR)$(sbindir)/ganeti-image
	for name in ganeti-image mount-disks umount-disks; do ln -sfn $(program) $(DESTDIR)$(defdir)/tools/$$name; done
	install -m 0644 os-def/ganeti_api_version os-def/parameters.list os-def/common.sh $(DESTDIR)$(defdir)
	ln -sfn $(confdir)/variants.list $(DESTDIR)$(defdir)/variants.list
	install -m 0644 README.md $(DESTDIR)$(docdir)
	install -m 0644 LICENSE $(DESTDIR)$(docdir)/copyright
	cp -R --no-preserve=mode,ownership variants networks overlays $(DESTDIR)$(docdir)
	for dir in $(localstatedir)/cache/ganeti-instance-image $(sysconfdir)/default \
		$(addprefix $(confdir)/,variants networks/instances networks/subnets overlays hooks); do \
		test -d $(DESTDIR)$$dir || install -d -m 0755 $(DESTDIR)$$dir || exit 1; done
	test -e $(DESTDIR)$(confdir)/variants.list || install -m 0644 os-def/variants.list $(DESTDIR)$(confdir)/variants.list
	test -e $(DESTDIR)$(confdir)/variants/default.conf || install -m 0644 /dev/null $(DESTDIR)$(confdir)/variants/default.conf
	test -e $(DESTDIR)$(sysconfdir)/default/ganeti-instance-image || \
		sed 's|"/etc/|"$(sysconfdir)/|; s|"/var/|"$(localstatedir)/|' packaging/default > $(DESTDIR)$(sysconfdir)/default/ganeti-instance-image
	for hook in $(hooks); do test -e $(DESTDIR)$(confdir)/hooks/$$hook || { \
		sed 's|@program@|$(program)|' hooks/$$hook > $(DESTDIR)$(confdir)/hooks/$$hook && \
		chmod 0644 $(DESTDIR)$(confdir)/hooks/$$hook; } || exit 1; done

lint: ## Formatting, vet, staticcheck
	@test -z "$$(gofmt -l cmd internal test)" || { gofmt -l cmd internal test; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

test: ## Everything: installs what it needs (root), then runs every tier of tests
	test/all

demo: ## Build, make a Debian cloud image, deploy it, boot it to the login prompt (root)
	test/demo

matrix: ## Boot every image layout with every firmware on a real Ganeti, and every network (root, after test/setup)
	TEST_MACHINE=yes TEST_MATRIX=all $(GO) test -count=1 -timeout 3h -v ./test -run 'TestGaneti|TestNetworkBoots'

bench: ## Compare with the tools one would use instead, as ratios
	$(GO) run ./test/bench

packages: ## A .deb and an .rpm for amd64 and arm64 in dist/
	rm -rf dist && mkdir -p dist
	for arch in amd64 arm64; do \
		rm -rf $(BUILD)/root && \
		GOARCH=$$arch $(MAKE) install DESTDIR=$(CURDIR)/$(BUILD)/root BUILD=$(BUILD)/$$arch && \
		for format in deb rpm; do \
			ARCH=$$arch VERSION=$(VERSION:v%=%) $(GO) run $(NFPM) package --config packaging/nfpm.yaml --packager $$format --target dist/ || exit 1; \
		done || exit 1; \
	done

clean: ## Remove what was built
	rm -rf $(BUILD) dist
