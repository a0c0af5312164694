// SPDX-License-Identifier: Apache-2.0

package main

import (
	dnsclient "github.com/thinkube/infra/modules/dns_client"
	dnsquery "github.com/thinkube/infra/modules/dns_query"
	dnszone "github.com/thinkube/infra/modules/dns_zone"
	gpuvfio "github.com/thinkube/infra/modules/gpu_vfio"
	gpuvfioinfo "github.com/thinkube/infra/modules/gpu_vfio_info"
	"github.com/thinkube/infra/modules/internal/ansible"
	kernelcmdline "github.com/thinkube/infra/modules/kernel_cmdline"
	lxdcluster "github.com/thinkube/infra/modules/lxd_cluster"
	lxdinfo "github.com/thinkube/infra/modules/lxd_info"
	lxdnetwork "github.com/thinkube/infra/modules/lxd_network"
	lxdprofile "github.com/thinkube/infra/modules/lxd_profile"
	lxdstoragepool "github.com/thinkube/infra/modules/lxd_storage_pool"
	netbridge "github.com/thinkube/infra/modules/net_bridge"
	netbridgeinfo "github.com/thinkube/infra/modules/net_bridge_info"
	zerotierinfo "github.com/thinkube/infra/modules/zerotier_info"
	zerotiermember "github.com/thinkube/infra/modules/zerotier_member"
	zerotiernetwork "github.com/thinkube/infra/modules/zerotier_network"
)

// runners lists every module of the collection.
func runners() []ansible.Runner {
	return []ansible.Runner{
		dnsclient.Module,
		dnsquery.Module,
		dnszone.Module,
		gpuvfio.Module,
		gpuvfioinfo.Module,
		kernelcmdline.Module,
		lxdcluster.Module,
		lxdinfo.Module,
		lxdnetwork.Module,
		lxdprofile.Module,
		lxdstoragepool.Module,
		netbridge.Module,
		netbridgeinfo.Module,
		zerotierinfo.Module,
		zerotiermember.Module,
		zerotiernetwork.Module,
	}
}
