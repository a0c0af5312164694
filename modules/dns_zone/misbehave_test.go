// SPDX-License-Identifier: Apache-2.0

package dnszone_test

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/dnstest"
	"github.com/thinkube/infra/modules/internal/dnswire"
)

const (
	soa  = "example.com. 3600 IN SOA ns1.example.com. hostmaster.example.com. 1 7200 900 1209600 300"
	soa2 = "example.com. 3600 IN SOA ns1.example.com. hostmaster.example.com. 2 7200 900 1209600 300"
	ns   = "example.com. 3600 IN NS ns1.example.net."
	www  = "www.example.com. 3600 IN A 192.0.2.1"
)

// TestNothingWrongIsBelieved has servers that answer a transfer in every wrong way: never is that an empty zone, and nothing
// is sent to them.
func TestNothingWrongIsBelieved(t *testing.T) {
	for _, each := range []struct {
		name   string
		code   ansible.Code
		handle func(e *dnstest.Exchange)
	}{
		{"refused", dnswire.CodeRefused, func(e *dnstest.Exchange) { e.Answer(e.Reply(dns.RcodeRefused)) }},
		{"not authoritative", dnswire.CodeRefused, func(e *dnstest.Exchange) { e.Answer(e.Reply(dns.RcodeNotAuth)) }},
		{"server failure", dnswire.CodeRefused, func(e *dnstest.Exchange) { e.Answer(e.Reply(dns.RcodeServerFailure)) }},
		{"no such name", dnswire.CodeRefused, func(e *dnstest.Exchange) { e.Answer(e.Reply(dns.RcodeNameError)) }},
		{"a refusal in the middle", dnswire.CodeRefused, func(e *dnstest.Exchange) {
			e.Answer(e.Reply(0, soa, ns))
			e.Answer(e.Reply(dns.RcodeServerFailure))
		}},
		{"no records", dnswire.CodeMalformed, func(e *dnstest.Exchange) { e.Answer(e.Reply(0)) }},
		{"no SOA first", dnswire.CodeMalformed, func(e *dnstest.Exchange) { e.Answer(e.Reply(0, ns, soa)) }},
		{"SOA of another zone", dnswire.CodeMalformed, func(e *dnstest.Exchange) {
			other := "sub." + soa
			e.Answer(e.Reply(0, other, ns, other))
		}},
		{"another SOA at the end", dnswire.CodeMalformed, func(e *dnstest.Exchange) { e.Answer(e.Reply(0, soa, ns, soa2)) }},
		{"records after the end", dnswire.CodeMalformed, func(e *dnstest.Exchange) { e.Answer(e.Reply(0, soa, ns, soa, www)) }},
		{"records of others", dnswire.CodeMalformed, func(e *dnstest.Exchange) { e.Answer(e.Reply(0, soa, ns, "www.example.net. 1 IN A 192.0.2.1", soa)) }},
		{"truncated", dnswire.CodeMalformed, func(e *dnstest.Exchange) {
			msg := e.Reply(0, soa, ns, soa)
			msg.Truncated = true
			e.Answer(msg)
		}},
		{"cut off", dnswire.CodeMalformed, func(e *dnstest.Exchange) {
			raw, _ := e.Reply(0, soa, ns, www, soa).Pack()
			e.Write(raw[:len(raw)-20])
		}},
		{"noise", dnswire.CodeMalformed, func(e *dnstest.Exchange) { e.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }},
		{"an answer to another question", dnswire.CodeMalformed, func(e *dnstest.Exchange) {
			msg := e.Reply(0, soa, ns, soa)
			msg.Question[0].Name = "example.net."
			e.Answer(msg)
		}},
		{"another ID", dnswire.CodeMalformed, func(e *dnstest.Exchange) {
			msg := e.Reply(0, soa, ns, soa)
			msg.Id++
			e.Answer(msg)
		}},
		{"the question itself", dnswire.CodeMalformed, func(e *dnstest.Exchange) { e.Write(e.Raw) }},
		{"hangs up at once", dnswire.CodeUnreachable, func(e *dnstest.Exchange) { e.Close() }},
		{"hangs up half-way", dnswire.CodeUnreachable, func(e *dnstest.Exchange) {
			e.Answer(e.Reply(0, soa, ns, www))
			e.Close()
		}},
		{"never answers", ansible.CodeTimeout, func(*dnstest.Exchange) {}},
		{"never ends", ansible.CodeTimeout, func(e *dnstest.Exchange) { e.Answer(e.Reply(0, soa, ns, www)) }},
	} {
		t.Run(each.name, func(t *testing.T) {
			updates := 0
			port := dnstest.Misbehave(t, "", func(e *dnstest.Exchange) {
				if e.Updates() {
					updates++
				}

				each.handle(e)
			})

			args := dict{"name": "example.com", "port": port, "timeout": "1s", "records": []any{record("www", "A", "192.0.2.1")}}
			failed := dnstest.Fails(t, module, each.code, args)
			assert.False(t, failed.Changed)
			assert.Zero(t, updates, "nothing is sent to such a server")

			args["state"] = "absent"
			dnstest.Fails(t, module, each.code, args)
		})
	}
}

// TestSignaturesAreChecked changes, leaves out or repeats what a real server has signed.
func TestSignaturesAreChecked(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		for name, change := range map[string]func(n int, raw []byte) []byte{
			"an address": func(_ int, raw []byte) []byte {
				for i := range len(raw) - 4 {
					if string(raw[i:i+4]) == "\xc0\x00\x02\x35" {
						raw[i+3]++
					}
				}

				return raw
			},
			"no signature": func(_ int, raw []byte) []byte {
				msg := new(dns.Msg)
				if msg.Unpack(raw) != nil {
					return nil
				}

				msg.Extra = nil
				raw, _ = msg.Pack()

				return raw
			},
			"the response code": func(_ int, raw []byte) []byte {
				raw[3] = raw[3]&0xf0 | dns.RcodeServerFailure

				return raw
			},
		} {
			t.Run(name, func(t *testing.T) {
				port := dnstest.Misbehave(t, s.Address(), func(e *dnstest.Exchange) { e.Pass(change) })
				args := task(s, dict{"port": port, "timeout": "3s", "records": []any{record("www", "A", "192.0.2.1")}})
				dnstest.Fails(t, module, dnswire.CodeKey, args)
			})
		}
	})
}

// TestUpdatesThatGoWrong has a real zone, and a server in front of it that does something else with updates.
func TestUpdatesThatGoWrong(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		n := 0

		for _, each := range []struct {
			name   string
			code   ansible.Code
			handle func(e *dnstest.Exchange)
		}{
			{"refused without signature", dnswire.CodeKey, func(e *dnstest.Exchange) { e.Answer(e.Reply(dns.RcodeRefused)) }},
			{"accepted by a liar without the key", dnswire.CodeKey, func(e *dnstest.Exchange) { e.Answer(e.Reply(0)) }},
			{"dropped", dnswire.CodeUnreachable, func(e *dnstest.Exchange) { e.Close() }},
			{"never answered", ansible.CodeTimeout, func(*dnstest.Exchange) {}},
		} {
			t.Run(each.name, func(t *testing.T) {
				n++
				honest := false
				port := dnstest.Misbehave(t, s.Address(), func(e *dnstest.Exchange) {
					if e.Updates() && !honest {
						each.handle(e)
					} else {
						e.Pass(nil)
					}
				})
				args := task(s, dict{"port": port, "timeout": "3s", "settle": "300ms", "records": []any{record(fmt.Sprintf("n%d", n), "A", "192.0.2.1")}})

				failed := dnstest.Fails(t, module, each.code, args)
				assert.Empty(t, failed.Failure.Done)
				assert.Contains(t, failed.Failure.Step, fmt.Sprintf("create records n%d.example.com A", n))

				// Whatever became of it, the next run finishes it.
				honest = true
				again := dnstest.OK(t, module, args)
				assert.True(t, again.Changed)
			})
		}
	})
}

// TestTheAnswerIsLost has the server do what it is sent, and nobody say so: the zone does.
func TestTheAnswerIsLost(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		fallsSilent, silent := false, false
		port := dnstest.Misbehave(t, s.Address(), func(e *dnstest.Exchange) {
			switch {
			case silent:
				e.Close()
			case e.Updates():
				e.Pass(func(int, []byte) []byte { return nil })
				e.Close()

				silent = fallsSilent
			default:
				e.Pass(nil)
			}
		})

		args := task(s, dict{"port": port, "force": true, "soa": dict{"minimum": 77}, "records": []any{record("lost", "A", "192.0.2.1")}})
		result := dnstest.OK(t, module, args)
		assert.True(t, result.Changed)
		assert.Len(t, result.Plan, 2)
		dnstest.Unchanged(t, module, args)

		fallsSilent = true
		failed := dnstest.Fails(t, module, dnswire.CodeUnreachable, dnstest.With(args, dict{"records": []any{record("lost", "A", "192.0.2.2")}}))
		assert.Contains(t, failed.Msg, "whether the change was made is not known")
	})
}

// TestKilledBetweenUpdates cuts the program when one of its messages has arrived, before it has the answer, and runs the task again.
func TestKilledBetweenUpdates(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}

	onEach(t, func(t *testing.T, s *dnstest.Server) {
		list := []any{record("ns2", "A", "192.0.2.54")}
		for i := range 900 {
			list = append(list, record(fmt.Sprintf("host-%d", i), "A", "192.0.2.1"), record(fmt.Sprintf("sub-%d", i), "NS", "ns2"))
		}

		for cut := 1; ; cut++ {
			program, updates := make(chan *exec.Cmd, 1), 0
			port := dnstest.Misbehave(t, s.Address(), func(e *dnstest.Exchange) {
				if !e.Updates() {
					e.Pass(nil)

					return
				}

				updates++

				if updates == cut {
					e.Pass(func(int, []byte) []byte { return nil })

					_ = (<-program).Process.Kill()
				} else {
					e.Pass(nil)
				}
			})

			args := task(s, dict{"records": list, "port": port})
			run := asProgram(t, args)
			require.NoError(t, run.Start())

			program <- run

			if run.Wait() == nil {
				assert.Greater(t, cut, 3, "several messages were cut")

				return
			}

			args["port"] = s.Port
			rest := dnstest.OK(t, module, args)
			assert.Less(t, len(rest.Plan), len(list), "what was done is not done again")
			dnstest.OK(t, module, dnstest.With(args, dict{"state": "absent", "force": true}))
		}
	})
}

// TestASecondaryThatLags reads the zone where a change, also one of the SOA alone, is seen later.
func TestASecondaryThatLags(t *testing.T) {
	primary := dnstest.Start(t, "named", dnstest.Zone{Name: zone})
	secondary := dnstest.Start(t, "named", dnstest.Zone{Name: zone, PrimaryPort: primary.Port, PrimaryKey: "update"})

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	go func() {
		for ctx.Err() == nil {
			time.Sleep(700 * time.Millisecond)

			_ = exec.CommandContext(ctx, dnstest.Find("rndc"), "-c", secondary.Control, "refresh", zone).Run()
		}
	}()

	args := task(primary, dict{"force": true, "transfer_server": "127.0.0.1", "transfer_port": secondary.Port, "soa": dict{"minimum": 78}})
	dnstest.OK(t, module, args)
	assert.Contains(t, secondary.Lookup(zone, "SOA"), " 78")

	dnstest.OK(t, module, dnstest.With(args, dict{"records": []any{record("late", "A", "192.0.2.1")}}))
	assert.Equal(t, "192.0.2.1", secondary.Lookup("late.example.com", "A"))
}

// TestAcceptedAndNotDone has a server that says yes and does nothing.
func TestAcceptedAndNotDone(t *testing.T) {
	port := dnstest.Misbehave(t, "", func(e *dnstest.Exchange) {
		if e.Updates() {
			e.Answer(e.Reply(0))
		} else {
			e.Answer(e.Reply(0, soa, ns, soa))
		}
	})

	failed := dnstest.Fails(t, module, ansible.CodeNotConverged, dict{
		"name": "example.com", "port": port, "settle": "300ms", "records": []any{record("www", "A", "192.0.2.1")},
	})
	assert.Contains(t, failed.Msg, "www.example.com A")
}

// TestALateAnswerIsAnAnswer waits for a slow server as long as the task may take.
func TestALateAnswerIsAnAnswer(t *testing.T) {
	onEach(t, func(t *testing.T, s *dnstest.Server) {
		port := dnstest.Misbehave(t, s.Address(), func(e *dnstest.Exchange) {
			time.Sleep(500 * time.Millisecond)
			e.Pass(nil)
		})
		dnstest.OK(t, module, task(s, dict{"port": port, "timeout": "10s", "records": []any{record("late", "A", "192.0.2.1")}}))
	})
}

// TestDataThatCannotBeRead has a zone with a record whose data does not fit its type: the others are managed all the same.
func TestDataThatCannotBeRead(t *testing.T) {
	port := dnstest.Misbehave(t, "", func(e *dnstest.Exchange) {
		msg := e.Reply(0, soa, ns, www, soa)

		// The parameters of an SVCB record that end in the middle of one.
		msg.Answer[1] = &dns.RFC3597{Hdr: dns.RR_Header{Name: "bad.example.com.", Rrtype: dns.TypeSVCB, Class: dns.ClassINET}, Rdata: "0001000001"}
		e.Answer(msg)
	})

	args := dict{"name": "example.com", "port": port, "records": []any{record("www", "A", "192.0.2.1")}}
	result := dnstest.Unchanged(t, module, args)
	assert.EqualValues(t, 2, result.Raw["zone"].(dict)["records"])
	dnstest.Unchanged(t, module, dnstest.With(args, dict{"manage": "zone"}))
}

func TestNobodyThere(t *testing.T) {
	failed := dnstest.Fails(t, module, dnswire.CodeUnreachable, dict{"name": "example.com", "port": 1, "records": []any{record("www", "A", "192.0.2.1")}})
	assert.Contains(t, failed.Msg, "connection refused")
}
