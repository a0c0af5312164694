// SPDX-License-Identifier: Apache-2.0

package lxdcluster

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// Token is what a join token says, without its secret.
type Token struct {
	ServerName  string    `json:"server_name"`
	Fingerprint string    `json:"fingerprint"`
	Addresses   []string  `json:"addresses"`
	ExpiresAt   time.Time `json:"expires_at"`
	Expired     bool      `json:"expired"`
}

// decodeToken reads a join token (LXD shared/api/cluster.go: base64 of a JSON object). The secret in it is returned
// apart, so that it can be hidden as well as the whole. Errors never hold any of the token.
func decodeToken(secret ansible.Secret) (*Token, ansible.Secret, error) {
	bad := errors.New("join_token: is no join token; make one with: lxc cluster add NAME")

	text, err := base64.StdEncoding.DecodeString(secret.Reveal())
	if err != nil {
		return nil, ansible.Secret{}, bad
	}

	var token struct {
		Token
		Secret string `json:"secret"`
	}

	err = json.Unmarshal(text, &token)
	if err != nil || token.ServerName == "" || token.Fingerprint == "" || token.Secret == "" {
		return nil, ansible.Secret{}, bad
	}

	// Tokens of LXD before 4.0.8 tell no expiry; the server judges those.
	if token.ExpiresAt.IsZero() {
		token.ExpiresAt = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	}

	return &token.Token, ansible.NewSecret(token.Secret), nil
}
