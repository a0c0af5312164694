// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestExitCodes(t *testing.T) {
	t.Setenv("THINKUBE_LAB_DIR", t.TempDir())
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"nothing":           {nil, 2, "usage: lab"},
		"unknown command":   {[]string{"frobnicate"}, 2, `unknown command "frobnicate"`},
		"unknown flag":      {[]string{"down", "--hard"}, 2, "-hard"},
		"too many words":    {[]string{"stop", "n1", "n2"}, 2, "2 words instead of 1 to 1"},
		"too few words":     {[]string{"diff", "n1"}, 2, "1 words instead of 2 to 2"},
		"exec without what": {[]string{"exec", "n1"}, 2, "exec what"},
		"help":              {[]string{"up", "-h"}, 0, "usage: lab"},
		"no lab":            {[]string{"status"}, 1, "the lab is not up"},
		"a flag after":      {[]string{"add", "n9", "--without-lxd"}, 1, "the lab is not up"},
		"bad subnet":        {[]string{"up", "--subnet", "ten"}, 1, `"ten"`},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			assert.Equal(t, c.code, run(t.Context(), c.args, &stdout, &stderr))
			assert.Contains(t, stderr.String(), c.says)
		})
	}
}
