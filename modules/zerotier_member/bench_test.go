// SPDX-License-Identifier: Apache-2.0

package zerotiermember_test

import (
	"testing"
	"time"

	"github.com/thinkube/infra/modules/internal/zttest"
)

// most is how many times the service's own time a join by the module may take.
const most = 1.2

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

	// Taken in turns, so that both meet the same load.
	var service, ours time.Duration

	for range b.N {
		w, a := online(b)
		start := time.Now()

		w.Controller("POST", member, `{"authorized":true}`)
		a.Call(b, "POST", "/network/"+zttest.Network, "{}")

		for a.Call(b, "GET", "/network/"+zttest.Network, "")["status"] != "OK" {
			time.Sleep(time.Millisecond)
		}

		service += time.Since(start)

		w, _ = online(b)
		task := managed(w, nil)
		task["wait_timeout"] = "30s"
		start = time.Now()

		zttest.OK(b, module, task)

		ours += time.Since(start)
	}

	ratio := ours.Seconds() / service.Seconds()
	b.ReportMetric(service.Seconds()/float64(b.N), "s/service")
	b.ReportMetric(ours.Seconds()/float64(b.N), "s/module")
	b.ReportMetric(ratio, "module/service")

	if ratio > most {
		b.Errorf("the module takes %.2f times as long as the service itself; at most %.1f times is promised", ratio, most)
	}
}
