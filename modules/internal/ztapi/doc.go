// SPDX-License-Identifier: Apache-2.0

// Package ztapi speaks to ZeroTier: to the service of a node, to the controller that such a service can hold, and to
// ZeroTier Central in both of its versions. It makes no decisions and compares nothing: what a controller stored is given
// back as it is, addresses in one spelling.
//
// The service and the self-hosted controller are written from recordings of zerotier-one 1.14.1. Central is written from
// its published documents alone; no answer of it was seen.
package ztapi

import "github.com/thinkube/infra/modules/internal/ansible"

// Failure codes of every module that speaks to ZeroTier.
const (
	CodeServiceMissing        ansible.Code = "service_missing"
	CodeServiceUnreachable    ansible.Code = "service_unreachable"
	CodeTokenRefused          ansible.Code = "token_refused"
	CodeTunUnusable           ansible.Code = "tun_unusable"
	CodeControllerUnreachable ansible.Code = "controller_unreachable"
	CodeControllerMissing     ansible.Code = "controller_missing"
	CodeNetworkUnknown        ansible.Code = "network_unknown"
	CodeUnexpectedAnswer      ansible.Code = "unexpected_answer"
)

// CodeStoredOtherwise is for modules that change something at a controller.
const CodeStoredOtherwise ansible.Code = "stored_otherwise"

// Codes says what the codes of this package mean, beside those of a module.
func Codes(own map[ansible.Code]string) map[ansible.Code]string {
	codes := map[ansible.Code]string{
		CodeServiceMissing:        "the host has no ZeroTier service, or its token is not in its home folder",
		CodeServiceUnreachable:    "the host's ZeroTier service does not answer",
		CodeTokenRefused:          "the service or the controller refuses the token, or the place that the call came from",
		CodeTunUnusable:           "the service cannot make a network device because /dev/net/tun is not usable",
		CodeControllerUnreachable: "the controller does not answer, or only with errors that pass",
		CodeControllerMissing:     "that zerotier-one was built without a controller",
		CodeNetworkUnknown:        "the controller has no such network",
		CodeUnexpectedAnswer:      "an answer is not what the interface is documented or was seen to give",
	}

	for code, text := range own {
		codes[code] = text
	}

	return codes
}
