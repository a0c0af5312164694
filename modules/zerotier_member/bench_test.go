// SPDX-License-Identifier: Apache-2.0

package zerotiermember_test

import (
	"testing"
	"time"

	"github.com/thinkube/infra/modules/internal/zttest"
)

// BenchmarkJoin compares the module with the service's own time, from the first request to OK: authorised first, then joined
// and polled without pause. The double's times are those of the real service (a join takes 2.9 s).
func BenchmarkJoin(b *testing.B) {
	const member = "/controller/network/" + zttest.Network + "/member/" + zttest.NodeA

	online := func(b *testing.B) (*zttest.World, *zttest.Node) {
		b.StopTimer()
		defer b.StartTimer()

		w := zttest.NewScaled(b, 1)
		a := w.Nodes[zttest.NodeA]

		for a.Call(b, "GET", "/status", "")["online"] != true {
			time.Sleep(50 * time.Millisecond)
		}

		return w, a
	}

	b.Run("service", func(b *testing.B) {
		for range b.N {
			w, a := online(b)
			w.Controller("POST", member, `{"authorized":true}`)
			a.Call(b, "POST", "/network/"+zttest.Network, "{}")

			for a.Call(b, "GET", "/network/"+zttest.Network, "")["status"] != "OK" {
				time.Sleep(time.Millisecond)
			}
		}
	})

	b.Run("module", func(b *testing.B) {
		for range b.N {
			w, _ := online(b)
			task := managed(w, nil)
			task["wait_timeout"] = "30s"
			zttest.OK(b, module, task)
		}
	})
}
