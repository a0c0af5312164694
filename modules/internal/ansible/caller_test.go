// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWhileRead(t *testing.T) {
	reader, writer, err := os.Pipe()
	require.NoError(t, err)

	defer writer.Close()

	ctx, stop := whileRead(t.Context(), writer)
	defer stop()

	select {
	case <-ctx.Done():
		t.Fatal("ended while somebody was reading")
	case <-time.After(50 * time.Millisecond):
	}

	require.NoError(t, reader.Close())

	select {
	case <-ctx.Done():
		assert.ErrorIs(t, context.Cause(ctx), errCallerGone)
	case <-time.After(5 * time.Second):
		t.Fatal("goes on with nobody to read the answer")
	}

	other, stop := whileRead(t.Context(), &bytes.Buffer{})
	require.NoError(t, other.Err(), "what is no file has nobody to lose")
	stop()
	assert.Error(t, other.Err())
}
