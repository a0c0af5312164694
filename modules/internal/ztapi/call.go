// SPDX-License-Identifier: Apache-2.0

package ztapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
)

const (
	// biggest is the most bytes that are read of an answer: the members of a very large network fit.
	biggest = 64 << 20
	// firstPause and longestPause bound the waits between tries.
	firstPause   = 200 * time.Millisecond
	longestPause = 15 * time.Second
)

// caller makes requests of one server.
type caller struct {
	what        string // "the ZeroTier service", for errors
	base        string // without a slash at the end
	header      string // the header that carries the token
	prefix      string // what stands before the token in it
	token       ansible.Secret
	retries     int           // further tries after a failure that can pass; a 429 is none where left bounds the waiting
	left        time.Duration // for all requests that are still to come, pauses included; 0 at first: no bound
	client      *http.Client
	unreachable ansible.Code
}

// answer is what a server said.
type answer struct {
	status int
	body   []byte
	header http.Header
}

// makeClient gives a client whose connections end with the context. Redirects are not followed: they would carry the
// token to another place.
func makeClient(ctx context.Context, timeout time.Duration, security *tls.Config) *http.Client {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: security, MaxIdleConnsPerHost: 2, IdleConnTimeout: 4 * time.Second,
	}
	context.AfterFunc(ctx, transport.CloseIdleConnections)

	return &http.Client{
		Transport: transport, Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// makeTLS reads the certificates that a controller is checked with.
func makeTLS(caPath string, validate bool) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: !validate} //nolint:gosec // the user's own choice

	if caPath == "" {
		return config, nil
	}

	text, err := os.ReadFile(caPath)
	if err != nil {
		return nil, err
	}

	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%q holds no certificate in PEM form", caPath)
	}

	return config, nil
}

// do makes a request until it is answered with something that will not change by itself. Body nil sends none. Once says
// that a second request would do a second thing, as making a network with a new id does.
func (c *caller) do(ctx context.Context, method, path string, body any, once bool) (answer, error) {
	if c.left == 0 {
		return c.persist(ctx, method, path, body, once)
	}

	start := time.Now()

	ctx, cancel := context.WithTimeoutCause(ctx, c.left, errDeadline)
	defer cancel()

	got, err := c.persist(ctx, method, path, body, once)
	c.left = max(c.left-time.Since(start), time.Nanosecond)

	return got, err
}

// errDeadline is why a request ends that has no time left.
var errDeadline = errors.New("the time for all requests of the controller is over (option controller.deadline)")

// withCause names the deadline that ended a request.
func withCause(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errDeadline) {
		return fmt.Errorf("%w: %w", errDeadline, err)
	}

	return err
}

func (c *caller) persist(ctx context.Context, method, path string, body any, once bool) (answer, error) {
	var text []byte

	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}

		text = encoded
	}

	failures := 0

	for try := 0; ; try++ {
		got, err := c.try(ctx, method, path, text)

		err = withCause(ctx, err)
		again := err != nil || got.passing()
		// The server is well, and only asks to wait: how often depends on how many others wait too.
		limited := err == nil && got.status == http.StatusTooManyRequests

		if !limited || c.left == 0 {
			failures++
		}

		if !again || failures > c.retries || ctx.Err() != nil || once && (err != nil || got.status != http.StatusTooManyRequests) {
			return got, c.judge(method, path, got, err)
		}

		select {
		case <-ctx.Done():
			if limited {
				err = errors.New("status 429, too many requests, at every try")
			}

			return got, c.judge(method, path, got, withCause(ctx, errors.Join(err, ctx.Err())))
		case <-time.After(pause(try, got.header, time.Now())):
		}
	}
}

func (c *caller) try(ctx context.Context, method, path string, body []byte) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}

	request.Header.Set(c.header, c.prefix+c.token.Reveal())
	request.Header.Set("Accept", "application/json")

	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}

	response, err := c.client.Do(request)
	if err != nil {
		return answer{}, err
	}

	defer func() { _ = response.Body.Close() }()

	text, err := io.ReadAll(io.LimitReader(response.Body, biggest))

	return answer{response.StatusCode, text, response.Header}, err
}

// passing tells of answers that another try can change. The controller's 500 about the JSON it was sent is none.
func (a answer) passing() bool {
	return a.status == http.StatusTooManyRequests || a.status >= 500 && !bytes.Contains(a.body, []byte("[json.exception."))
}

// pause is how long to wait after a failed try: twice as long each time with a part left to chance, so that many hosts do
// not come back together; or as long as the server says.
func pause(try int, header http.Header, now time.Time) time.Duration {
	wait := min(firstPause<<min(try, 10), longestPause)
	wait += time.Duration(rand.Int64N(int64(wait)))

	if asked := askedPause(header, now); asked > 0 {
		wait = asked + time.Duration(rand.Int64N(int64(firstPause)*2))
	}

	return min(wait, 2*longestPause)
}

// askedPause reads Retry-After (RFC 9110, 10.2.3) and Central's X-Ratelimit-Reset, an HTTP date.
func askedPause(header http.Header, now time.Time) time.Duration {
	after := header.Get("Retry-After")

	if seconds, err := strconv.Atoi(after); err == nil && seconds >= 0 {
		return time.Duration(seconds) * time.Second
	}

	for _, text := range []string{after, header.Get("X-Ratelimit-Reset")} {
		if at, err := http.ParseTime(text); err == nil && at.After(now) {
			return at.Sub(now)
		}
	}

	return 0
}

// judge turns what no module can go on from into an error. Statuses that callers know to read are left to them: 2xx, 400
// and 404.
func (c *caller) judge(method, path string, got answer, err error) error {
	where := fmt.Sprintf("%s %s of %s at %s", method, path, c.what, c.base)

	switch {
	case err != nil:
		return ansible.Fail(c.unreachable, "look whether it runs and can be reached from this host, and try again", "%s: %w", where, err)
	case got.status == http.StatusUnauthorized && c.header == serviceHeader:
		return ansible.Fail(CodeTokenRefused, "give the content of authtoken.secret in the home folder of that service; calls from elsewhere than 127.0.0.1 need settings.allowManagementFrom in its local.conf",
			"%s: refused (401): the token is wrong, or the caller is not on the service's loopback", where)
	case got.status == http.StatusUnauthorized, got.status == http.StatusForbidden:
		return ansible.Fail(CodeTokenRefused, "look whether the token is current and may change that network", "%s: refused (%d)", where, got.status)
	case got.passing():
		return ansible.Fail(c.unreachable, "try again later", "%s: status %d after %d tries%s", where, got.status, c.retries+1, quote(got.body))
	case got.status >= 200 && got.status < 300, got.status == http.StatusNotFound, got.status == http.StatusBadRequest:
		return nil
	}

	return ansible.Fail(CodeUnexpectedAnswer, "look whether the URL is that of ZeroTier's interface", "%s: status %d%s", where, got.status, quote(got.body))
}

// quote shows the beginning of an answer.
func quote(body []byte) string {
	text := strings.TrimSpace(string(body[:min(len(body), 200)]))
	if text == "" {
		return ""
	}

	return fmt.Sprintf(": %q", text)
}

// read decodes an answer's body.
func (c *caller) read(path string, got answer, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(got.body))

	err := decoder.Decode(into)
	if err != nil {
		return ansible.Fail(CodeUnexpectedAnswer, "look whether the URL is that of ZeroTier's interface",
			"%s of %s at %s: the answer cannot be read: %w%s", path, c.what, c.base, err, quote(got.body))
	}

	return nil
}

// refused makes an error of a 400 or 404 that a caller did not expect.
func (c *caller) refused(method, path string, got answer) error {
	return ansible.Fail(CodeUnexpectedAnswer, "", "%s %s of %s at %s: status %d%s", method, path, c.what, c.base, got.status, quote(got.body))
}
