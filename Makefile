# SPDX-License-Identifier: Apache-2.0
#
# `make` alone lists the targets. demo and test do all the set-up themselves.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
MAKEFLAGS += --no-builtin-rules

# Shells that are no login shells (root's, sudo's, those of CI) often miss the folder that Go's installer uses.
export PATH := $(PATH):/usr/local/go/bin
# A version stamp would give every commit programs of other bytes, and every host a new upload; and git refuses to
# tell root about a checkout that belongs to a user.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
# What playbooks need to find this checkout, also where the folder is writable by others and ansible.cfg is ignored.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

# What NVIDIA's header calls deprecated fills the screen; nothing here calls it.
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations

ARCHES := amd64 arm64
VERSION := $(shell sed -n 's/^version: *//p' galaxy.yml)
BUNDLES := $(ARCHES:%=libexec/thinkube_linux_%.gz)
# Modules that cannot be static, and so are no part of the bundle: each is a program of its own, built from carried/.
OWN := $(patsubst modules/%/carried,%,$(wildcard modules/*/carried))
PROGRAMS := $(BUNDLES) $(foreach module,$(OWN),$(ARCHES:%=libexec/thinkube_$(module)_linux_%.gz))
TARBALL := dist/thinkube-infra-$(VERSION).tar.gz
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '-s -w'
# With C, for glibc. Go's own resolver and user lookup, so that nothing but the module's purpose needs C; and symbols are
# looked for when they are used, since those of NVIDIA's library are there only where the driver is.
CC_amd64 := x86_64-linux-gnu-gcc
CC_arm64 := aarch64-linux-gnu-gcc
GO_BUILD_C := CGO_ENABLED=1 go build -trimpath -tags netgo,osusergo -ldflags '-s -w -extldflags=-Wl,-z,lazy'
# Whatever may end up in a program; tests and their data do not.
GO_SOURCES := go.mod go.sum $(shell find modules -type f ! -name '*_test.go' ! -path '*/testdata/*')
COLLECTION_FILES := galaxy.yml README.md CHANGELOG.md LICENSE $(shell find LICENSES changelogs docs meta playbooks plugins roles \
	inventory/reference.yaml -type f ! -name '*.pyc' 2>/dev/null)

# Pinned, and run without a line in go.mod: no program of ours is built with them.
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOTESTSUM := go run gotest.tools/gotestsum@v1.13.0

# A tool and the package that has it; why each is needed is in docs/dependencies.md.
TOOLS_DEMO := ansible-playbook=ansible-core debootstrap=debootstrap systemd-nspawn=systemd-container \
	ip=iproute2 ssh=openssh-client perl=perl-base gzip=gzip git=git ca-certificates=ca-certificates
ifeq ($(shell uname -m),aarch64)
TOOLS_C := gcc=gcc libc6-dev=libc6-dev x86_64-linux-gnu-gcc=gcc-x86-64-linux-gnu libc6-dev-amd64-cross=libc6-dev-amd64-cross
else
TOOLS_C := gcc=gcc libc6-dev=libc6-dev aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu libc6-dev-arm64-cross=libc6-dev-arm64-cross
endif
TOOLS_TEST := $(TOOLS_DEMO) $(TOOLS_C) ansible-runner=ansible-runner sshd=openssh-server sshpass=sshpass sudo=sudo busybox=busybox-static openssl=openssl \
	unshare=util-linux setpriv=util-linux lxd=lxd lxc=lxd-client dnsmasq=dnsmasq-base nft=nftables mkfs.btrfs=btrfs-progs \
	named=bind9 named-checkzone=bind9-utils dig=bind9-dnsutils knotd=knot kzonecheck=knot-dnssecutils python3-dnspython=python3-dnspython \
	qemu-system-x86_64=qemu-system-x86 qemu-aarch64=qemu-user xz=xz-utils zstd=zstd lz4=lz4 mke2fs=e2fsprogs \
	dpkg-deb=dpkg ps=procps gpg=gpg gpg-agent=gpg-agent ansible-lint=ansible-lint yamllint=yamllint shellcheck=shellcheck

.PHONY: help
help: ## list the targets
	@echo "The two commands that do all the set-up (as root, on Debian or Ubuntu with Go):"
	@echo "  make demo   three hosts become an LXD cluster on this machine"
	@echo "  make test   every test"
	@echo
	@echo "All targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

# --- set-up

.PHONY: root go deps deps-packages deps-build deps-demo
root:
	@if [ "$$(id -u)" != 0 ]; then echo "this needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; fi

go:
	@command -v go >/dev/null || { echo "Go is missing, also from /usr/local/go/bin: install it from https://go.dev/dl (version in go.mod, or newer)" >&2; exit 1; }

# $(1): tool=package...; installs the packages whose tool is missing.
define install
	@missing=
	for pair in $(1); do
	  tool=$${pair%%=*} package=$${pair#*=}
	  if [ "$$tool" = "$$package" ]; then [ -d "/usr/share/doc/$$package" ] && continue; fi
	  if ! PATH=$$PATH:/usr/sbin:/sbin command -v "$$tool" >/dev/null; then missing="$$missing $$package"; fi
	done
	if [ -z "$$missing" ]; then echo "deps: everything is installed"; exit 0; fi
	echo "deps: missing:$$missing"
	if [ "$$(id -u)" != 0 ]; then echo "deps: installing them needs root: sudo make deps" >&2; exit 1; fi
	echo "deps: apt-get update"
	apt-get -qq update
	wanted= ; for package in $$missing; do
	  if [ -n "$$(apt-cache search --names-only "^$$package$$")" ]; then wanted="$$wanted $$package"
	  else echo "deps: this distribution has no package $$package; the tests that need it are skipped (and fail under CI=true)"; fi
	done
	echo "deps: apt-get install$$wanted"
	# The tests start their own daemons: none may come up now, and these two not with the machine either.
	if [ ! -e /usr/sbin/policy-rc.d ]; then
	  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	  chmod 755 /usr/sbin/policy-rc.d
	  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	fi
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 install $$wanted >/dev/null
	for service in named:bind9 knot:knot; do
	  case " $$wanted " in *" $${service#*:} "*) systemctl -q disable "$${service%:*}.service" || true ;; esac
	done
endef

deps: deps-packages ## install with apt what is missing for everything (as root)
	@# Only unpacked to the user's cache, never installed.
	go run ./tests/vm/cmd || echo "deps: no kernel for virtual machines; the tests that need it are skipped (and fail under CI=true)"

deps-packages: go
	$(call install,$(TOOLS_TEST))

deps-build: go ## install with apt the C compilers that build needs (as root)
	$(call install,$(TOOLS_C))

deps-demo: go
	$(call install,$(TOOLS_DEMO))

# --- programs

.PHONY: build modules collection
build: $(PROGRAMS) ## the programs that the collection carries to hosts (libexec/)

# $(1): a build command; $(2): what it builds. Both files take their place together at the end: a play that runs meanwhile
# reads the sum of what it uploads.
define pack
	@mkdir -p libexec
	new=$$(mktemp -d libexec/.new-XXXXXX)
	trap 'rm -rf "$$new"' EXIT
	echo "building $@"
	GOOS=linux GOARCH=$* $(1) -o "$$new/program" ./$(2)
	sha256sum <"$$new/program" | cut -d ' ' -f 1 >"$$new/sha256"
	gzip -n -9 <"$$new/program" >"$$new/gz"
	mv "$$new/gz" $@
	mv "$$new/sha256" $(@:.gz=.sha256)
endef

libexec/thinkube_linux_%.gz: $(GO_SOURCES) | go
	$(call pack,$(GO_BUILD),modules/bundle)

define own_program
libexec/thinkube_$(1)_linux_%.gz: $(GO_SOURCES) | go
	@command -v $$(CC_$$*) >/dev/null || { echo "$$(CC_$$*) is missing: sudo make deps-build" >&2; exit 1; }
	$$(call pack,CC=$$(CC_$$*) $$(GO_BUILD_C),modules/$(1)/carried)
endef
$(foreach module,$(OWN),$(eval $(call own_program,$(module))))

modules: go ## every module as a stand-alone program (dist/modules/)
	@cc_amd64=$(CC_amd64) cc_arm64=$(CC_arm64)
	for arch in $(ARCHES); do
	  compiler=cc_$$arch
	  for folder in modules/*/cmd; do
	    module=$$(basename "$$(dirname "$$folder")")
	    program=dist/modules/linux_$$arch/$$module
	    echo "building $$program"
	    if [ -d "modules/$$module/carried" ]; then
	      command -v "$${!compiler}" >/dev/null || { echo "$${!compiler} is missing: sudo make deps-build" >&2; exit 1; }
	      GOOS=linux GOARCH=$$arch CC=$${!compiler} $(GO_BUILD_C) -o "$$program" "./$$folder"
	    else
	      GOOS=linux GOARCH=$$arch $(GO_BUILD) -o "$$program" "./$$folder"
	    fi
	  done
	done

collection: $(TARBALL) ## the collection as a tarball (dist/)

$(TARBALL): $(PROGRAMS) $(COLLECTION_FILES)
	@ansible-galaxy collection build --force --output-path dist

# --- tests

.PHONY: test test-unit test-zerotier fuzz lint lint-go lint-yaml bench
test: root deps build lint ## every test: lint, units, real LXD, transport, lab, collection (as root)
	@# Records and zone files are what others write: their parsers get more than the seeds.
	$(MAKE) --no-print-directory fuzz FUZZ=modules/internal/records FUZZTIME=2s
	# Two packages at a time: each has names and networks of its own. More would only get in each other's way.
	THINKUBE_LAB=1 $(GOTESTSUM) --format standard-quiet -- -p 2 -count 1 -timeout 60m ./...

test-unit: go ## the tests that need neither root nor network
	@go test -short $$(go list ./... | grep -v /tests/)

FUZZ := modules
FUZZTIME := 10s
fuzz: go ## every fuzz target below FUZZ (modules) for FUZZTIME (10s), each beginning with what earlier runs have found
	@grep -r --include='*_test.go' -o '^func Fuzz[A-Za-z0-9]*' $(FUZZ) | sort | while IFS=: read -r file target; do
	  echo "fuzzing $$file: $${target#func }"
	  go test -run NONE -fuzz "^$${target#func }$$" -fuzztime "$(FUZZTIME)" "./$$(dirname "$$file")" >/dev/null ||
	    { echo "run it again for what it says: go test -run $${target#func } ./$$(dirname "$$file")" >&2; exit 1; }
	done

test-zerotier: root go ## the ZeroTier scenarios; ZT_HOME=FOLDER [ZT_URL=URL] runs them against a real service with a controller
	@if [ -n "$(ZT_URL)" ] && [ -z "$(ZT_HOME)" ]; then echo "ZT_URL needs ZT_HOME, the home folder of that service, which has its token" >&2; exit 1; fi
	ZT_HOME="$(ZT_HOME)" ZT_URL="$(ZT_URL)" go test -count 1 -v -run '$(if $(ZT_HOME),^TestScenarios$$,.)' ./modules/internal/zttest

lint: lint-go lint-yaml ## gofmt, go vet, staticcheck, yamllint, ansible-lint, shellcheck

lint-go: go
	@unformatted=$$(gofmt -l modules tests)
	if [ -n "$$unformatted" ]; then echo "gofmt -w is needed for:" >&2; echo "$$unformatted" >&2; exit 1; fi
	go vet ./...
	go vet -tags faultinject ./modules/...
	$(STATICCHECK) ./...

lint-yaml:
	@yamllint --strict .
	ansible-lint --offline -q --nocolor
	find . -name '*.sh' -not -path './.collections/*' -print0 | xargs -0 -r shellcheck
	shellcheck .ci/run

bench: root deps build ## what a task costs, side by side with Ansible's own; DNS with dig and nsupdate, a ZeroTier join with the service
	@go run ./tests/bench
	# Where that is allowed, other work does not get in between; as an ordinary process on a busy machine it says nothing.
	realtime= ; if chrt -r 1 true 2>/dev/null; then realtime='-exec=chrt -r 1'; fi
	set -x
	go test $${realtime:+"$$realtime"} -run NONE -bench . -benchtime 1x -timeout 30m ./modules/dns_zone
	go test -run NONE -bench Join -benchtime 3x ./modules/zerotier_member

# --- the lab and the demo

.PHONY: demo lab-up lab-down
dist/lab: go FORCE
	@go build -o $@ ./tests/lab/cmd
FORCE:

lab-up: root deps-demo dist/lab ## boot the lab: three Debian hosts on this machine (as root)
	@dist/lab up

lab-down: root dist/lab ## remove the lab
	@dist/lab down

demo: root deps-demo $(BUNDLES) lab-up ## three hosts become an LXD cluster (as root)
	@for playbook in 10_setup_lxd_cluster 18_test_lxd_cluster 20_setup_lxd_profiles 28_test_lxd_profiles; do
	  echo
	  echo "# ansible-playbook ansible/20_lxd_setup/$$playbook.yaml"
	  ansible-playbook "ansible/20_lxd_setup/$$playbook.yaml"
	done
	show() { echo; echo "# dist/lab exec n1 $$*"; dist/lab exec n1 "$$@"; }
	dist/lab exec n1 lxc version >/dev/null 2>&1 # lxc greets whoever calls it first
	show lxc cluster list
	show lxc storage list
	show lxc network list
	show lxc profile list
	sed 's/^|//' <<'END'
	|
	|That was the demo: three hosts are one LXD cluster. What to do now:
	|  dist/lab ssh n1                    log in to a host (n1, n2, n3)
	|  ansible-playbook ansible/20_lxd_setup/10_setup_lxd_cluster.yaml
	|                                     run it again: nothing changes
	|  dist/lab stop n3; ansible-playbook ansible/20_lxd_setup/18_test_lxd_cluster.yaml
	|                                     the test notices; dist/lab start n3 ends it
	|  ansible-playbook ansible/20_lxd_setup/19_rollback_lxd_cluster.yaml
	|                                     says what a rollback would do, and how to do it
	|  make lab-down                      clean up: no process, mount, link or namespace stays
	END

.PHONY: clean
clean: ## remove what was built here (not the lab, not its cached image)
	@rm -rf dist libexec bench-results
