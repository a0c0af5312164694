// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type none struct{}

func TestServicesRunOutsideOfTasks(t *testing.T) {
	ran := 0
	module := Module[none, none, none]{Name: "watcher", Services: map[string]func(context.Context) error{
		"once":  func(context.Context) error { ran++; return nil },
		"fails": func(context.Context) error { return errors.New("no luck") },
	}}

	for _, each := range []struct {
		module, service, said string
		code                  int
	}{
		{"watcher", "once", "", 0},
		{"watcher", "fails", "no luck\n", 1},
		{"watcher", "other", "this program has no service \"other\" of module \"watcher\"\n", 2},
		{"other", "once", "this program has no service \"once\" of module \"other\"\n", 2},
	} {
		argv := append([]string{"program"}, ServiceArgs(each.module, each.service)...)

		var stdout, stderr bytes.Buffer

		assert.Equal(t, each.code, Bundle([]Runner{module}, argv, nil, &stdout, &stderr))
		assert.Equal(t, each.said, stderr.String())

		stderr.Reset()
		assert.Equal(t, each.code, Standalone(module, argv, &stdout, &stderr))
		assert.Equal(t, each.said, stderr.String())
		assert.Empty(t, stdout.String())
	}

	assert.Equal(t, 2, ran)
}

func TestTaskGoesOnOverANewConnection(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	task := newTask("toy", nil)
	require.False(t, task.CanReconnect())
	require.NoError(t, task.Reconnect("a", time.Minute), "nobody could do it: the task goes on")
	require.False(t, task.Reconnected("a"))
	require.False(t, task.Resumed())

	var err error

	task.exchange, err = newExchange(key, nil)
	require.NoError(t, err)
	require.True(t, task.CanReconnect())

	err = task.Reconnect("a", 90*time.Second)

	var asked *pause

	require.ErrorAs(t, err, &asked)
	assert.Equal(t, "waiting for a new connection", err.Error())

	line, err := task.pauseAnswer(asked)
	require.NoError(t, err)

	answer := decodeAnswer(t, string(line))
	assert.Equal(t, map[string]any{"id": "a", "reconnect": 90.0}, answer["_thinkube_ask"])

	next := newTask("toy", nil)
	next.exchange, err = newExchange(key, map[string]answerMsg{"a": {}})
	require.NoError(t, err)
	require.NoError(t, next.resume(answer["_thinkube_resume"].(string)))
	require.NoError(t, next.Reconnect("a", time.Minute))
	assert.True(t, next.Resumed())
	assert.True(t, next.Reconnected("a"))
	assert.False(t, next.Reconnected("b"))
}
